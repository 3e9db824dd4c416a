"""What every section of the configuration is, and how two settings of one section can contradict each other."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class PrivateSection(Section):
    """What it holds stands in no message: neither in ours nor in the validator's."""

    model_config = ConfigDict(hide_input_in_errors=True)


def conflict(key: str, reason: str) -> PydanticCustomError:
    """What is wrong with ``key`` beside others; ``key`` is relative to the section that finds it."""
    return PydanticCustomError("conflict", "{reason}", {"key": key, "reason": reason})

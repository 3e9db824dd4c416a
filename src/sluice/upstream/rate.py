"""What is left of a quota, as Docker Hub's ``ratelimit-limit`` and ``ratelimit-remaining`` tell. PURE."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_VALUE = re.compile(r"\s*(\d{1,12})(?:\s*;\s*w=(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests in all and left, in a window of so many seconds where it is told."""

    limit: int
    remaining: int
    window_s: int | None = None


def parse_rate_limit(headers: Callable[[str], Sequence[str]]) -> RateLimit | None:
    """From the values of an answer's headers; None where it tells nothing that can be read."""
    limit, remaining = (_first(headers(name)) for name in ("ratelimit-limit", "ratelimit-remaining"))
    if limit is None or remaining is None:
        return None
    window = limit[2] or remaining[2]
    return RateLimit(int(limit[1]), int(remaining[1]), int(window) if window else None)


def _first(values: Sequence[str]) -> re.Match[str] | None:
    return _VALUE.match(values[0]) if values else None

"""Programs that are run to their end: their failures are sentences."""

from __future__ import annotations

import pytest

from sluice.errors import Unavailable
from sluice.lab.programs import run_step


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "echo bad >&2; exit 1"], r"^sh -c echo bad >&2; exit 1 … failed: bad$"),
        (["no-such-program"], r"^no-such-program is not installed"),
        (["sleep", "9"], r"^sleep did not end within 0 s: sleep 9$"),
    ],
)
def test_steps_that_fail_say_why(command: list[str], words: str) -> None:
    """A step's error names the command and what it said."""
    with pytest.raises(Unavailable, match=words):
        run_step(command, 0.4)

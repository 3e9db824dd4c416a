"""Programs that are run to their end: what they print, or why they failed, as one sentence.

The laboratory's steps (``ip``, ``ctr``, ``skopeo``, ``runc``) are other people's programs. What they say on failure is
what a person needs to read.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from sluice.errors import Unavailable

STEP_S = 120.0
"""How long one program may take, in seconds, where the caller does not say."""
WORDS_LINES = 3
"""How many of a program's last lines are repeated."""


def run_step(command: Sequence[str], seconds: float = STEP_S) -> str:
    """Run a program to its end and return its standard output; raises Unavailable with what it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed: run make setup, or install its Debian package") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end within {seconds:.0f} s: {' '.join(command)}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-WORDS_LINES:]
        raise Unavailable(f"{' '.join(command[:3])} … failed: {' / '.join(words)}")
    return done.stdout

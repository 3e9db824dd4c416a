"""The demo's child processes: each started by us, told apart by its PID, and ended before the demo ends.

They run in sessions of their own, so that Ctrl-C reaches the demo alone and the demo chooses the order of the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sluice.errors import Unavailable

TERM_S = 45.0
"""How long a child may take to end after SIGTERM, in seconds; the server drains for 30."""


class Child:
    """A long-running process whose output goes to a file. A context manager: leaving ends the process."""

    def __init__(self, name: str, command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None):
        self.name = name
        self.output = output
        self._environment = os.environ if environment is None else environment
        self._command = [*_dies_with_us(), *command]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        self.output.write_bytes(b"")
        self.start()
        return self

    def start(self) -> None:
        """Start the process, or start it again; what it says goes behind what it said before."""
        with self.output.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                env=self._environment,
            )

    def kill(self) -> None:
        """End it at once, without a chance to tidy up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def require_running(self) -> None:
        """Raise Unavailable with the last words of a process that has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            words = self.output.read_text("utf-8", "replace").strip().splitlines()[-3:]
            raise Unavailable(f"{self.name} ended by itself: {' / '.join(words) or 'without a word'} ({self.output})")


def _dies_with_us() -> list[str]:
    """A prefix that makes the kernel end the child if the demo is killed and cannot do so itself."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []

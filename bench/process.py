"""A server as a child process, and what the kernel says that it used.

Lowest module of the harness. CPU time and resident memory are read from ``/proc`` (proc(5)) for the whole tree, since
nginx serves from workers. Every process is started and ended by its own handle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class Process:
    """One running server. Its output goes to ``log``, as a service's would go to a file."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        # Settings from the environment would not be defaults.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "REGISTRY_"))
        }
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment
            )

    @property
    def ended(self) -> bool:
        """Whether the server is gone."""
        return self._child.poll() is not None

    def stop(self) -> None:
        """Ask with SIGTERM, insist with SIGKILL after ``STOP_TIMEOUT_S``."""
        if self.ended:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def cpu_s(self) -> float:
        """User and system seconds of the tree, children that it has already reaped included."""
        return sum(_ticks(pid) for pid in self._tree()) / _TICKS_PER_S

    def reset_peak(self) -> None:
        """Start the peak of resident memory afresh (``clear_refs`` takes 5 for that)."""
        for pid in self._tree():
            (_PROC / str(pid) / "clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Peak resident memory since ``reset_peak``, summed over the tree: pages shared by workers count twice."""
        return sum(_high_water(pid) for pid in self._tree())

    def last_words(self) -> str:
        """The end of the log, for the message when a server does not start."""
        return self.log.read_text(errors="replace")[-2000:]

    def _tree(self) -> list[int]:
        return [self._child.pid, *_descendants(self._child.pid)]


def _descendants(pid: int) -> Iterator[int]:
    for listing in _PROC.glob(f"{pid}/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end while its folder is read
            for child in map(int, listing.read_text().split()):
                yield child
                yield from _descendants(child)


def _ticks(pid: int) -> int:
    # The command's name may hold spaces and brackets; fields count from behind it. 11..14 = utime stime cutime cstime.
    fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15])


def _high_water(pid: int) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0

"""The processes of one HAProxy, found by what they are, and killed together.

``haproxy`` calls this for one that hangs. A worker has its master's command line and working directory. It ends with
its master only while it runs: one that is stopped stays behind, without a parent, and holds the listening sockets, so
that runtimes connect to it and no other HAProxy can start. So all of them are looked for, not a master's children.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from itertools import pairwise
from pathlib import Path

PROGRAM = b"haproxy"
ENDS_S = 5.0
"""How long the kernel may take to end a process, in seconds."""

Marks = frozenset[tuple[bytes, bytes]]
"""Options of a command line, each with its value."""


def find_processes(marks: Marks, directory: Path) -> list[int]:
    """Those that were started with these options and work in ``directory``."""
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in numbers if _belongs(pid, marks, directory)]


def kill_processes(marks: Marks, directory: Path) -> bool:
    """SIGKILL all of them, and those that they start meanwhile; False where some are left after ENDS_S."""
    deadline = time.monotonic() + ENDS_S
    while found := find_processes(marks, directory):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                _kill(pid, marks, directory, left_s)
    return True


def is_stopped(pid: int) -> bool:
    """Whether it does nothing until somebody lets it go on (SIGSTOP)."""
    with contextlib.suppress(OSError):
        return process_state(pid) == "T"
    return False


def process_state(pid: int) -> str:
    """One letter, as proc(5) has it. Raises OSError where there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _kill(pid: int, marks: Marks, directory: Path, within_s: float) -> None:
    process = os.pidfd_open(pid)
    try:
        if _belongs(pid, marks, directory):  # asked again: the descriptor means whoever has this PID now
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], within_s)
    finally:
        os.close(process)


def _belongs(pid: int, marks: Marks, directory: Path) -> bool:
    """Two nodes of one machine, in containers, may have the same paths: only the directory itself tells them apart."""
    home = Path(f"/proc/{pid}")
    try:
        words = (home / "cmdline").read_bytes().split(b"\0")
        if os.path.basename(words[0]) != PROGRAM or not marks <= set(pairwise(words)):
            return False
        return process_state(pid) != "Z" and os.path.samefile(home / "cwd", directory)
    except OSError:
        return False

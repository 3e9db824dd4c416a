"""One process for each data directory.

The first step of ``LocalStore.open``. Two writers of one index and one set of files would each be right alone and
wrong together, so the second one is told who the first is. The kernel drops the lock with the process, however that
ends; a stale file means nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from sluice.errors import DataDirectoryBusy
from sluice.store.paths import FILE_MODE

PID_WAIT_S = 0.2


class DirectoryLock:
    """An exclusive ``flock`` on a file that holds the owner's PID."""

    def __init__(self, path: Path) -> None:
        """Take the lock; raises DataDirectoryBusy naming the process that has it."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(self._descriptor)
            os.close(self._descriptor)
            raise DataDirectoryBusy(
                f"data directory {path.parent} is in use by process {owner}: stop that one first, or name another"
                " directory"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next process in; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _owner(descriptor: int) -> str:
    """The PID in the file. The owner writes it just after locking, so an empty file is given a moment."""
    deadline = time.monotonic() + PID_WAIT_S
    while True:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        if text or time.monotonic() > deadline:
            return text or "unknown"
        time.sleep(0.01)

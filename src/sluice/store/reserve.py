"""Room on the disk: an invariant that is checked before each write, and the meaning of the errors of a full disk.

Reads never come here: a full registry goes on serving.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from sluice.errors import SluiceError, StorageFull, Unavailable

STATVFS_CACHE_S = 0.1
FREE_BYTES_MIN = 64 << 10  # a full disk is full, whatever the reserve: less than this takes no commit of the index
# EFBIG: a limit on the file's size (RLIMIT_FSIZE, the file system's own) stops a writer as a full disk does.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Reserve:
    """Refuses writes while fewer than ``reserve_bytes`` are free on the disk of ``directory``. For any thread.

    A reserve below ``FREE_BYTES_MIN`` counts as that, so that a disk without room is known before a write fails on it.
    """

    def __init__(self, directory: Path, reserve_bytes: int) -> None:
        self._directory = directory
        self._reserve_bytes = max(reserve_bytes, FREE_BYTES_MIN)
        self._free_bytes = 0
        self._read_at = float("-inf")

    def writable(self) -> bool:
        """Whether a write would be let through just now.

        Room that was seen is believed for ``STATVFS_CACHE_S``, a lack of it never: once space is back, the very next
        write goes through.
        """
        now = time.monotonic()
        if self._free_bytes < self._reserve_bytes or now - self._read_at > STATVFS_CACHE_S:
            status = os.statvfs(self._directory)
            self._free_bytes = status.f_bavail * status.f_frsize
            self._read_at = now
        return self._free_bytes >= self._reserve_bytes

    def free_bytes(self) -> int:
        """Bytes that may still be written, as the disk says just now; negative below the reserve."""
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize - self._reserve_bytes

    def check(self) -> None:
        """Raises StorageFull below the reserve."""
        if not self.writable():
            raise StorageFull(
                f"storage.reserve is {self._reserve_bytes} bytes and {self._directory} has {self._free_bytes} free:"
                " free disk space, collect garbage or lower the reserve"
            )


def refused(error: OSError, what: str) -> SluiceError:
    """What an ``OSError`` while writing ``what`` means to a client: StorageFull, else Unavailable."""
    if error.errno in _FULL:
        return StorageFull(f"no room to write {what} ({error.strerror}): free disk space and try again")
    return Unavailable(f"cannot write {what} ({error.strerror}): check the disk of the data directory")

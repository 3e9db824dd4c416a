"""Keep bulk writes from holding up the neighbour, who on a control-plane disk is etcd.

Three means, together:

- Small flushes (``SessionFile``): every ``FLUSH_BYTES`` the disk is asked to take what was written, and nothing more
  while its share of ``DIRTY_BYTES_MAX`` is on its way there. A neighbour's fsync never waits for a heap. This alone
  was measured to keep etcd's fsync p99 under 4 ms beside 390 MB/s, where a writer without it makes that 80 to 140 ms.
- A ceiling in bytes per second (``Pacer``) over all fills together, and over pushes only where that is set: what a
  cache brings in by itself can wait, while somebody waits for the end of a push.
- Dropping from the page cache what was read for its digest alone. What was just written stays: the next to ask for it
  are the nodes, the page cache serves them at 9 GB/s and the disk at about one, and clean pages are the first that a
  kernel gives up when memory is short.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable

from sluice.store.memory_limit import memory_bytes

FLUSH_BYTES = 1 << 20
DIRTY_BYTES_MAX = 8 << 20  # of all writers together, while they are few
AHEAD_BYTES_MAX = 256 << 20
AHEAD_PART = 16
"""What all spools together may have in the page cache that the disk was not asked to take: readers of a fill go on at
the upstream's speed while the disk gets its bytes at the ceiling's. At most a sixteenth of the memory, for a kernel
flushes by itself from a tenth on."""
BURST_BYTES = 8 << 20
"""What one writer writes without ever waiting for the ceiling, and what all may write at once after a rest."""
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4  # linux/fs.h
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE})


class Pacer:
    """The ceiling over all bulk writers of one store together. For any thread.

    A bucket of tokens that goes into debt: whoever takes more than is there waits until the debt that it found is
    paid, so writers get their turn in the order in which they came, and share the rate by how much they bring at once.
    """

    def __init__(self, bytes_per_s: int, now: Callable[[], float] = time.monotonic) -> None:
        """``bytes_per_s``: 0 sets no ceiling. ``now``: seconds of a clock that never goes back."""
        self._bytes_per_s = bytes_per_s
        self._ahead_bytes = min(AHEAD_BYTES_MAX, memory_bytes() // AHEAD_PART)
        self._now = now
        self._lock = threading.Lock()
        self._paid_at = float("-inf")  # when all that was taken will be paid for, and the bucket begins to fill
        self._writers = 0

    @property
    def dirty_bytes(self) -> int:
        """How far one writer may be ahead of the disk."""
        return max(FLUSH_BYTES, DIRTY_BYTES_MAX // max(self._writers, 1))

    @property
    def ahead_bytes(self) -> int:
        """How much one spool may keep from the disk."""
        return max(FLUSH_BYTES, self._ahead_bytes // max(self._writers, 1))

    def enter(self) -> None:
        """One more writer has bytes that wait for the disk."""
        with self._lock:
            self._writers += 1

    def leave(self) -> None:
        """One writer less."""
        with self._lock:
            self._writers -= 1

    def take(self, count: int) -> float:
        """Take ``count`` bytes; returns how many seconds to wait before writing them. Whoever writes less than
        ``BURST_BYTES`` in all takes them and does not wait: others wait for it instead."""
        if self._bytes_per_s <= 0:
            return 0.0
        with self._lock:
            now = self._now()
            paid_at = max(self._paid_at, now - BURST_BYTES / self._bytes_per_s)
            self._paid_at = paid_at + count / self._bytes_per_s
            return max(0.0, self._paid_at - now)


def _load() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]  # ctypes functions are untyped


_sync_file_range = _load()


def start_writeback(descriptor: int, offset: int, length: int) -> bool:
    """Ask the disk to take ``length`` bytes from ``offset`` now, without waiting. False where the system cannot:
    nothing is lost then, the fsync at the end takes longer. Raises OSError where the disk fails."""
    return _sync(descriptor, offset, length, _SYNC_WRITE)


def await_writeback(descriptor: int, offset: int, length: int) -> bool:
    """Wait until the disk has taken the stretch; else as ``start_writeback``. Not durable yet: that takes an fsync.

    An error of the disk that is raised here is not told again by a later fsync: those bytes must not become content.
    """
    return _sync(descriptor, offset, length, _SYNC_WAIT_BEFORE | _SYNC_WRITE | _SYNC_WAIT_AFTER)


def drop_cache(descriptor: int, offset: int, length: int) -> None:
    """Tell the kernel that these clean pages will not be read soon (a rehash, a scrub, a fill that nobody reads)."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def _sync(descriptor: int, offset: int, length: int, flags: int) -> bool:
    if _sync_file_range is None or length <= 0:
        return False
    if _sync_file_range(descriptor, offset, length, flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number))

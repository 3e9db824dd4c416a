"""Keep bulk writes from piling up in the page cache.

The neighbour on a control-plane disk is etcd. Dirty pages that wait for one big fsync hold up everybody's fsync on
that disk; handed to the disk while the upload still runs, they leave the last fsync little to do. ``store.session``
calls this after every ``WRITEBACK_BYTES``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

WRITEBACK_BYTES = 8 << 20
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h; start the write-back of dirty pages and do not wait for it


def _load() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]  # ctypes functions are untyped


_sync_file_range = _load()


def start_writeback(descriptor: int, offset: int, length: int) -> bool:
    """Ask the disk to take ``length`` bytes from ``offset`` now. False where the system cannot: nothing is lost then,
    the fsync at the end takes longer."""
    if _sync_file_range is None or length <= 0:
        return False
    return _sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE) == 0


def drop_cache(descriptor: int, offset: int, length: int) -> None:
    """Tell the kernel that these clean pages will not be read soon (a rehash, a scrub)."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

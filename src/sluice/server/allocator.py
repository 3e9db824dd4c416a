"""Memory allocators set up for a server that passes bytes on: give back what is free, soon.

Importing this module does it, and it must come before Granian is imported: its allocator (jemalloc) reads its options
when the library is loaded. Left alone, jemalloc keeps freed pages for ten seconds in as many arenas as there are
threads, and glibc adds an arena for each thread: 64 pulls then cost 80 MiB of which 12 MiB are in use.
See jemalloc(3) "TUNING" and mallopt(3).
"""

from __future__ import annotations

import ctypes
import os

JEMALLOC_OPTIONS = "narenas:1,dirty_decay_ms:100,muzzy_decay_ms:0,tcache_max:4096"
_M_ARENA_MAX = -8
_ARENAS = 1

os.environ.setdefault("_RJEM_MALLOC_CONF", JEMALLOC_OPTIONS)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None:
    _mallopt(_M_ARENA_MAX, _ARENAS)

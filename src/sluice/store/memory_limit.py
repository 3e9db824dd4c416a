"""How much memory there is for us, to size what may wait in the page cache (``store.pace``).

A kernel begins to flush by itself, all at once and at no ceiling, when a tenth of the memory that it has for files is
dirty (``vm.dirty_background_ratio``), and in a container with a limit of its own when a tenth of that is.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LIMIT_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1 (kernel: cgroup-v2.rst, memory.rst)


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's memory, or the limit of the container that this process runs in where that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_limit(cgroup / name) for name in LIMIT_FILES)
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit(path: Path) -> int | None:
    """None where there is none, which version 2 calls ``max``."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None

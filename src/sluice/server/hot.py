"""Hot manifests: whole answers kept in memory, so that a pull's first two requests touch neither disk nor index.

Bounded in bytes, least recently made first out. A write to a repository drops its entries before the write is
acknowledged; an answer that was being prepared while such a write happened is not kept (``begin``/``keep``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository

ENTRY_OVERHEAD_BYTES = 2048
USE_AGAIN_S = 10.0  # a hit within as long after the last one that counted as use is no news
_STRIPES = 1024


@dataclass(slots=True)
class HotManifest:
    """A prepared 200 answer: the two ASGI messages, and what access and conditional checks need.

    ``until``: when it may not be given any more, by ``time.perf_counter``. ``used_until``: before this a hit is not
    told as use.
    """

    repository: Repository
    digest: Digest
    etag: bytes
    start: dict[str, Any]
    body: dict[str, Any]
    size: int
    until: float = math.inf
    used_until: float = -math.inf


def hot_key(path: bytes, query: bytes) -> bytes:
    """What an answer is kept under: the raw path, with the namespace that containerd adds. Empty, as no path is,
    with another query."""
    if not query:
        return path
    return path + b"?" + query if query.startswith(b"ns=") and b"&" not in query else b""


class HotManifests:
    """Answers by ``hot_key``. ``limit_bytes`` bounds the whole; ``hits`` counts what was answered from here. ``on_use``
    is told who was, at least every ``USE_AGAIN_S`` seconds of use."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.hits = 0
        self.on_use: Callable[[Repository, Digest], object] = _ignore
        self._entries: OrderedDict[bytes, HotManifest] = OrderedDict()
        self._paths: dict[Repository, set[bytes]] = {}
        self._generations = [0] * _STRIPES
        self.get = self._entries.get

    def hit(self, entry: HotManifest, now: float) -> None:
        """An answer was given again, at ``now`` by ``time.perf_counter``."""
        self.hits += 1
        if now >= entry.used_until:
            entry.used_until = now + USE_AGAIN_S
            self.on_use(entry.repository, entry.digest)

    def begin(self, repository: Repository) -> int:
        """Before reading from the store: remember the repository's generation."""
        return self._generations[hash(repository) % _STRIPES]

    def keep(self, path: bytes, entry: HotManifest, generation: int) -> None:
        """Keep an answer, unless the repository changed since ``begin``, or one that holds as long is there."""
        if generation != self.begin(entry.repository):
            return
        known = self._entries.get(path)
        if known is not None:
            if known.until >= entry.until:
                return
            self._drop(path)
        self._entries[path] = entry
        self._paths.setdefault(entry.repository, set()).add(path)
        self.bytes += entry.size + ENTRY_OVERHEAD_BYTES
        while self.bytes > self.limit_bytes:
            self._drop(next(iter(self._entries)))

    def changed(self, repository: Repository) -> None:
        """Forget everything about a repository."""
        self._generations[hash(repository) % _STRIPES] += 1
        for path in list(self._paths.get(repository, ())):
            self._drop(path)

    def _drop(self, path: bytes) -> None:
        entry = self._entries.pop(path)
        self.bytes -= entry.size + ENTRY_OVERHEAD_BYTES
        paths = self._paths[entry.repository]
        paths.discard(path)
        if not paths:
            del self._paths[entry.repository]


def _ignore(_repository: Repository, _digest: Digest) -> None:
    """Where nothing is evicted, use is nobody's business."""

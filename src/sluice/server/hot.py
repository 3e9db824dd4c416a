"""Hot manifests: whole answers kept in memory, so that a pull's first two requests touch neither disk nor index.

Bounded in bytes, least recently made first out. A write to a repository drops its entries before the write is
acknowledged; an answer that was being prepared while such a write happened is not kept (``begin``/``keep``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository

ENTRY_OVERHEAD_BYTES = 2048
_STRIPES = 1024


@dataclass(slots=True)
class HotManifest:
    """A prepared 200 answer: the two ASGI messages, and what access and conditional checks need."""

    repository: Repository
    digest: Digest
    etag: bytes
    start: dict[str, Any]
    body: dict[str, Any]
    size: int


class HotManifests:
    """Answers by raw request path. ``limit_bytes`` bounds the whole."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._entries: OrderedDict[bytes, HotManifest] = OrderedDict()
        self._paths: dict[Repository, set[bytes]] = {}
        self._generations = [0] * _STRIPES
        self.get = self._entries.get

    def begin(self, repository: Repository) -> int:
        """Before reading from the store: remember the repository's generation."""
        return self._generations[hash(repository) % _STRIPES]

    def keep(self, path: bytes, entry: HotManifest, generation: int) -> None:
        """Keep an answer, unless the repository changed since ``begin``."""
        if generation != self.begin(entry.repository) or path in self._entries:
            return
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

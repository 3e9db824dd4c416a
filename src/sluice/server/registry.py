"""What the handlers work on: what is the same in every mode, and the wiring of the current one."""

from __future__ import annotations

from dataclasses import dataclass

from sluice.oci.reference import Repository
from sluice.server.access import Access
from sluice.server.wiring import Wiring
from sluice.telemetry import AccessLog, Metrics


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request. Bytes and seconds by suffix."""

    manifest_bytes: int
    body_idle_s: float
    response_idle_s: float
    streams_bytes: int


@dataclass(slots=True)
class Registry:
    """A registry. ``wiring`` is what a request that begins now takes (``Exchange.wiring``), and the only part of it
    that changes."""

    wiring: Wiring
    access: Access
    metrics: Metrics
    access_log: AccessLog
    limits: Limits
    _cache_hits_before: int = 0

    @property
    def cache_hits_in_memory(self) -> int:
        """Answers of caches that were given from memory since the start."""
        current = self.wiring.hot.hits if self.wiring.mode != "local" else 0
        return self._cache_hits_before + current

    def rewire(self, wiring: Wiring) -> Wiring:
        """Let requests that begin from now on take ``wiring``; the one before it is returned."""
        self._cache_hits_before = self.cache_hits_in_memory
        before, self.wiring = self.wiring, wiring
        return before

    def changed(self, repository: Repository) -> None:
        """A repository is not what it was: nothing of it is answered from memory."""
        self.wiring.hot.changed(repository)

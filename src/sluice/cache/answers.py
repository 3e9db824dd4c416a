"""Where an answer came from and why, and how many came from where.

``PullThrough``'s ``fetch_…`` methods return a ``Fetched``: the server puts the provenance in a header, and the counters
in its metrics.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Kind(Enum):
    """Where an answer came from: held here; a fill that ran already; a fill begun for it; held here although the
    upstream would not say so now; the upstream, just asked; the upstream, past the cache; a registry without upstream.
    """

    HIT = "hit"
    JOINED = "joined"
    STARTED = "started"
    STALE = "stale"
    UPSTREAM = "upstream"
    BYPASS = "bypass"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Provenance:
    """``reason``: one word or two why it is stale, past the cache, or being looked at again; else None."""

    kind: Kind
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """An answer with its provenance. ``fresh_s``: seconds for which it may be given again without asking the cache."""

    value: T
    provenance: Provenance
    fresh_s: float = 0.0


@dataclass(slots=True)
class CacheCounters:
    """Plain numbers for metrics; ``fills_active`` and ``fills_queued`` are gauges, all else only grows.

    ``answers``, ``stale`` and ``bypassed`` have a bounded set of keys: the values of ``Kind``, and the reasons of stale
    answers and of those that went past the cache. ``fills_given_way``: fills that nobody read, ended for others.
    ``absent``: "there is none", from memory. ``resumes``: bodies that went on after a break. ``invalid``: bodies that
    were not what their digest says. ``diverted``: readers of a fill that went on straight from the upstream.
    ``unkept``: content that the store had no room for.
    """

    answers: Counter[str] = field(default_factory=Counter)
    stale: Counter[str] = field(default_factory=Counter)
    bypassed: Counter[str] = field(default_factory=Counter)
    absent: int = 0
    fills_active: int = 0
    fills_queued: int = 0
    fills_begun: int = 0
    fills_done: int = 0
    fills_failed: int = 0
    fills_given_way: int = 0
    fills_prefetched: int = 0
    upstream_bytes: int = 0
    resumes: int = 0
    diverted: int = 0
    invalid: int = 0
    unkept: int = 0
    revalidations: int = 0

    def move_fills(self, before: tuple[int, int], now: tuple[int, int]) -> None:
        """Of the active and queued fills, somebody had so many and has so many now. Others have theirs: a mode that was
        left goes on until its last fetch has ended."""
        self.fills_active += now[0] - before[0]
        self.fills_queued += now[1] - before[1]

    def count(self, provenance: Provenance) -> None:
        """One more answer."""
        self.answers[provenance.kind.value] += 1
        if provenance.kind is Kind.STALE:
            self.stale[provenance.reason or "unknown"] += 1
        if provenance.kind is Kind.BYPASS:
            self.bypassed[provenance.reason or "unknown"] += 1

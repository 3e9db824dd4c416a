"""That there is no such thing, as the upstream said: remembered for a while, so that it is not asked again at once.

A digest may be a blob's that no manifest has, and the other way round: what is not there as the one says nothing about
the other. So the kind is part of what is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sluice.cache.answers import CacheCounters
from sluice.cache.flights import again
from sluice.cache.recent import Recent
from sluice.cache.sources import ABSENT
from sluice.errors import SluiceError
from sluice.oci.reference import Reference, Repository

ABSENT_MAX = 10_000  # "there is none" remembered

What = Literal["manifest", "blob"]


class Absences:
    """Each for ``period_s`` seconds of ``clock``."""

    def __init__(self, period_s: float, clock: Callable[[], float], counters: CacheCounters) -> None:
        self._known: Recent[tuple[What, Repository, str], SluiceError] = Recent(ABSENT_MAX, period_s, clock)
        self._counters = counters

    @contextmanager
    def noted(self, what: What, repository: Repository, reference: Reference) -> Iterator[None]:
        """Ask the upstream inside: its "there is none" is remembered, and raised at once while it is."""
        key = (what, repository, str(reference))
        known = self._known.get(key)
        if known is not None:
            self._counters.absent += 1
            raise again(known)
        try:
            yield
        except ABSENT as error:
            self._known.put(key, error)
            raise

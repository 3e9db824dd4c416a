"""Tag lists and referrers through a cache: the upstream's while it can be asked, else the last ones, else what is held.

Pages are remembered in memory, as many as have ``ENTRIES_MAX`` entries together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

from sluice.cache.answers import Fetched, Kind, Provenance
from sluice.cache.flights import Flights
from sluice.cache.policy import CachePolicy, patience_s
from sluice.cache.recent import Recent
from sluice.errors import NameUnknown, SluiceError, UpstreamError, UpstreamTimeout
from sluice.oci.content import Referrer, Source
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.local import LocalStore

Entry = TypeVar("Entry", Tag, Referrer)
Ask: TypeAlias = Callable[[], Coroutine[Any, Any, Sequence[Entry]]]

ENTRIES_MAX = 50_000  # tags and referrers, of all pages together
TROUBLES_MAX = 10_000  # pages that were asked for in vain


class Listings:
    """The listings of one cache."""

    def __init__(
        self, store: LocalStore, upstream: Source, flights: Flights, policy: CachePolicy, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._flights = flights
        self._policy = policy
        self._pages: Recent[Hashable, Sequence[Any]] = Recent(
            ENTRIES_MAX, policy.tag_fresh_s, clock, lambda page: 1 + len(page)
        )
        self._troubles: Recent[Hashable, str] = Recent(TROUBLES_MAX, policy.negative_s, clock)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """A page of tags; raises NameUnknown, or an UpstreamError where nothing is known."""
        return await self._page(
            ("tags", repository, limit, last),
            lambda: self._upstream.tags(repository, limit, last),
            lambda: self._store.tags(repository, limit, last),
        )

    async def referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """What refers to ``subject``; raises an UpstreamError where nothing is known."""
        return await self._page(
            ("referrers", repository, subject),
            lambda: self._upstream.referrers(repository, subject),
            lambda: self._held_referrers(repository, subject),
        )

    async def _page(self, key: Hashable, ask: Ask[Entry], held: Ask[Entry]) -> Fetched[Sequence[Entry]]:
        fresh = self._pages.get(key)
        if fresh is not None:
            return Fetched(fresh, Provenance(Kind.HIT))
        trouble = self._troubles.get_expired(key)
        known = await self._known(key, held if trouble is not None else None)
        if known is not None and trouble is not None and self._troubles.get(key) is not None:
            return Fetched(known, Provenance(Kind.STALE, trouble))
        deadline_s = patience_s(known is not None, trouble, self._policy)
        try:
            page = await self._flights.ask(key, lambda: self._flight(key, ask), deadline_s)
        except (UpstreamError, NameUnknown) as error:
            if self._flights.flying(key):  # it was too slow for us; nobody else waits for it
                self._troubles.put(key, trouble or UpstreamTimeout.reason)
            return await self._stale(key, error, held)
        return Fetched(page, Provenance(Kind.UPSTREAM))

    async def _flight(self, key: Hashable, ask: Ask[Entry]) -> Sequence[Entry]:
        """Ask, and remember how that went."""
        try:
            page = await ask()
        except UpstreamError as error:
            self._troubles.put(key, error.reason)
            raise
        except NameUnknown:
            self._troubles.forget(key)
            raise
        self._troubles.forget(key)
        self._pages.put(key, page)
        return page

    async def _stale(self, key: Hashable, error: SluiceError, held: Ask[Entry]) -> Fetched[Sequence[Entry]]:
        """The last page, or what is held; raises ``error`` where there is neither."""
        if isinstance(error, NameUnknown) and not self._policy.keep_gone:
            self._pages.forget(key)
            raise error
        known = await self._known(key, held)
        if known is None:
            raise error
        reason = error.reason if isinstance(error, UpstreamError) else "gone"
        return Fetched(known, Provenance(Kind.STALE, self._troubles.get_expired(key) or reason))

    async def _known(self, key: Hashable, held: Ask[Entry] | None) -> Sequence[Entry] | None:
        """The last page, or what is held, where that is asked for; None where there is neither."""
        known = cast("Sequence[Entry] | None", self._pages.get_expired(key))
        if known is None and held is not None:
            with contextlib.suppress(NameUnknown):
                return await held()
        return known

    async def _held_referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """An empty list would say that there are none, which nobody knows here."""
        found = await self._store.referrers(repository, subject)
        if not found:
            raise NameUnknown(f"nothing is known about {subject} in {repository}")
        return found

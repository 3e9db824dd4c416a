"""Tag lists and referrers through a cache: the upstream's while it can be asked, else the last ones, else what is held.

Pages are remembered in memory, as many as have ``ENTRIES_MAX`` entries together.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeVar, cast

from sluice.cache.answers import Fetched, Kind, Provenance
from sluice.cache.flights import Flights
from sluice.cache.policy import CachePolicy
from sluice.cache.recent import Recent
from sluice.errors import NameUnknown, SluiceError, UpstreamError
from sluice.oci.content import Referrer, Source
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.local import LocalStore

Entry = TypeVar("Entry", Tag, Referrer)

ENTRIES_MAX = 50_000  # tags and referrers, of all pages together


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

    async def _page(
        self,
        key: Hashable,
        ask: Callable[[], Coroutine[Any, Any, Sequence[Entry]]],
        held: Callable[[], Coroutine[Any, Any, Sequence[Entry]]],
    ) -> Fetched[Sequence[Entry]]:
        fresh = self._pages.get(key)
        if fresh is not None:
            return Fetched(fresh, Provenance(Kind.HIT))
        try:
            page = await self._flights.ask(key, ask, self._policy.head_deadline_s)
        except (UpstreamError, NameUnknown) as error:
            return await self._stale(key, error, held)
        self._pages.put(key, page)
        return Fetched(page, Provenance(Kind.UPSTREAM))

    async def _stale(
        self, key: Hashable, error: SluiceError, held: Callable[[], Coroutine[Any, Any, Sequence[Entry]]]
    ) -> Fetched[Sequence[Entry]]:
        """The last page, or what is held; raises ``error`` where there is neither."""
        if isinstance(error, NameUnknown) and not self._policy.keep_gone:
            self._pages.forget(key)
            raise error
        reason = error.reason if isinstance(error, UpstreamError) else "gone"
        known = cast("Sequence[Entry] | None", self._pages.get_expired(key))
        if known is None:
            try:
                known = await held()
            except NameUnknown:
                raise error from None
        return Fetched(known, Provenance(Kind.STALE, reason))

    async def _held_referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """An empty list would say that there are none, which nobody knows here."""
        found = await self._store.referrers(repository, subject)
        if not found:
            raise NameUnknown(f"nothing is known about {subject} in {repository}")
        return found

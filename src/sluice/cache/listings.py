"""Tag lists and referrers through a cache: the upstream's while it can be asked, else the last ones, else what is held.

Pages are remembered in memory, as many as have ``ENTRIES_MAX`` entries together, and in the store's index
(``store.lists``), so that they outlive a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from sluice.cache.answers import Fetched, Kind, Provenance
from sluice.cache.flights import Flights
from sluice.cache.pages import ReferrersPage, TagsPage
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
ONLY_HELD = "only what is held"
"""Why a list that nobody has seen before is stale: there may be more."""

_log = logging.getLogger(__name__)


class Page(Protocol[Entry]):
    """A question for a page (``cache.pages``)."""

    @property
    def repository(self) -> Repository:
        """Whose list it is."""

    @property
    def question(self) -> str:
        """What the page is kept under."""

    def write(self, page: Sequence[Entry]) -> str:
        """The page as text."""

    def read(self, text: str) -> Sequence[Entry]:
        """What ``write`` wrote."""


class Listings:
    """The listings of one cache."""

    def __init__(
        self, store: LocalStore, upstream: Source, flights: Flights, policy: CachePolicy, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._flights = flights
        self._policy = policy
        self._pages: Recent[str, Sequence[Any]] = Recent(
            ENTRIES_MAX, policy.tag_fresh_s, clock, lambda page: 1 + len(page)
        )
        self._troubles: Recent[str, str] = Recent(TROUBLES_MAX, policy.negative_s, clock)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """A page of tags; raises NameUnknown, or an UpstreamError where nothing is known."""
        return await self._page(
            TagsPage(repository, limit, last),
            lambda: self._upstream.tags(repository, limit, last),
            lambda: self._store.tags(repository, limit, last),
        )

    async def referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """What refers to ``subject``; raises an UpstreamError where nothing is known."""
        return await self._page(
            ReferrersPage(repository, subject),
            lambda: self._upstream.referrers(repository, subject),
            lambda: self._held_referrers(repository, subject),
        )

    async def _page(self, key: Page[Entry], ask: Ask[Entry], held: Ask[Entry]) -> Fetched[Sequence[Entry]]:
        fresh = self._pages.get(key.question)
        if fresh is not None:
            return Fetched(fresh, Provenance(Kind.HIT))
        trouble = self._troubles.get_expired(key.question)
        known = await self._seen(key)
        stale = None if trouble is None else await self._stale(known, trouble, held)
        if stale is not None and self._troubles.get(key.question) is not None:
            return stale
        deadline_s = patience_s(known is not None or stale is not None, trouble, self._policy)
        try:
            page = await self._flights.ask(key.question, lambda: self._flight(key, ask), deadline_s)
        except (UpstreamError, NameUnknown) as error:
            reason = error.reason if isinstance(error, UpstreamError) else "gone"
            if self._flights.flying(key.question):  # it was too slow for us; nobody else waits for it
                reason = trouble or UpstreamTimeout.reason
                self._troubles.put(key.question, reason)
            dropped = isinstance(error, NameUnknown) and not self._policy.keep_gone
            stale = None if dropped else await self._stale(known, reason, held)
            if stale is None:
                raise
            return stale
        return Fetched(page, Provenance(Kind.UPSTREAM))

    async def _flight(self, key: Page[Entry], ask: Ask[Entry]) -> Sequence[Entry]:
        """Ask, and remember how that went."""
        try:
            page = await ask()
        except UpstreamError as error:
            self._troubles.put(key.question, error.reason)
            raise
        except NameUnknown:
            self._troubles.forget(key.question)
            if not self._policy.keep_gone:
                self._pages.forget(key.question)
                await self._keep(key, None)
            raise
        self._troubles.forget(key.question)
        self._pages.put(key.question, page)
        await self._keep(key, page)
        return page

    async def _keep(self, key: Page[Entry], page: Sequence[Entry] | None) -> None:
        try:
            await self._store.lists.keep(self._place(key), None if page is None else key.write(page))
        except SluiceError as error:
            _log.warning("the list %s is not kept: %s", key.question, error.message)

    def _place(self, key: Page[Entry]) -> str:
        """Where the store keeps it: what one upstream said is not taken for what another one says."""
        return f"{self._store.word(key.repository) or ''} {key.question}"

    async def _seen(self, key: Page[Entry]) -> Sequence[Entry] | None:
        """The last page; None where none was seen."""
        seen = cast("Sequence[Entry] | None", self._pages.get_expired(key.question))
        if seen is not None:
            return seen
        try:
            text = await self._store.lists.find(self._place(key))
            return None if text is None else key.read(text)
        except (SluiceError, ValueError) as error:
            _log.warning("the list %s that was kept cannot be read: %s", key.question, error)
            return None

    async def _stale(
        self, seen: Sequence[Entry] | None, reason: str, held: Ask[Entry]
    ) -> Fetched[Sequence[Entry]] | None:
        """What was seen, else what is held; None where there is neither."""
        if seen is not None:
            return Fetched(seen, Provenance(Kind.STALE, reason))
        try:
            return Fetched(await held(), Provenance(Kind.STALE, ONLY_HELD))
        except NameUnknown:
            return None

    async def _held_referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """An empty list would say that there are none, which nobody knows here."""
        found = await self._store.referrers(repository, subject)
        if not found:
            raise NameUnknown(f"nothing is known about {subject} in {repository}")
        return found

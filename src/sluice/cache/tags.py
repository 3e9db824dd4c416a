"""Tags through a cache: how old what is known may be, when to ask, and what to do when asking fails.

``cache.policy`` decides; here the facts are gathered (the index, and in memory the questions that failed) and the
questions are asked, one at a time for each tag.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from sluice.cache.answers import CacheCounters, Fetched, Kind, Provenance
from sluice.cache.flights import Flights
from sluice.cache.policy import (
    CachePolicy,
    Outcome,
    TagAction,
    TagFacts,
    Verdict,
    after_ask,
    decide_tag,
    fresh_for_s,
    patience_s,
    stale_reason,
)
from sluice.cache.recent import Recent
from sluice.errors import ManifestUnknown, NameUnknown, SluiceError, UpstreamError
from sluice.oci.content import Descriptor
from sluice.oci.reference import Repository, Tag
from sluice.store.local import CachedTag, LocalStore

TROUBLES_MAX = 10_000  # tags that were asked about in vain
ACTOR = "upstream"
"""Who moves tags, in their history."""

_log = logging.getLogger(__name__)


class Tags:
    """The tags of one cache. ``learn`` asks the upstream what a tag names and brings the manifest here."""

    def __init__(
        self,
        store: LocalStore,
        learn: Callable[[Repository, Tag], Awaitable[Descriptor]],
        flights: Flights,
        policy: CachePolicy,
        counters: CacheCounters,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._learn = learn
        self._flights = flights
        self._policy = policy
        self._counters = counters
        self._clock = clock
        self._troubles: Recent[tuple[Repository, Tag], str] = Recent(TROUBLES_MAX, policy.negative_s, clock)

    async def fetch(self, repository: Repository, tag: Tag) -> Fetched[Descriptor]:
        """What the tag names; raises the upstream's error where nothing is known, and its "there is none"."""
        known = await self._store.cached_tag(repository, tag)
        facts = None if known is None else self._facts(repository, tag, known)
        action = decide_tag(facts, self._clock(), self._policy)
        if known is None or facts is None or action is TagAction.ASK_FIRST:
            return await self._ask(repository, tag, known)
        if action is TagAction.SERVE_AND_REVALIDATE:
            self._revalidate(repository, tag)
        reason = stale_reason(facts)
        if reason is not None:
            return Fetched(known.descriptor, Provenance(Kind.STALE, reason))
        if action is TagAction.SERVE_AND_REVALIDATE:
            return Fetched(known.descriptor, Provenance(Kind.HIT, "being looked at again"))
        return Fetched(known.descriptor, Provenance(Kind.HIT), fresh_for_s(facts, self._clock(), self._policy))

    def _facts(self, repository: Repository, tag: Tag, known: CachedTag) -> TagFacts:
        failed_at = self._troubles.since((repository, tag))
        trouble = self._troubles.get_expired((repository, tag))
        return TagFacts(known.checked_at, known.gone, known.pinned, failed_at, trouble)

    async def _ask(self, repository: Repository, tag: Tag, known: CachedTag | None) -> Fetched[Descriptor]:
        key = (repository, tag)
        trouble = self._troubles.get_expired(key)
        deadline_s = patience_s(known is not None, trouble, self._policy)
        try:
            found = await self._flights.ask(key, lambda: self._flight(repository, tag), deadline_s)
        except (UpstreamError, ManifestUnknown, NameUnknown) as error:
            failed = isinstance(error, UpstreamError)
            verdict = after_ask(known is not None, Outcome.FAILED if failed else Outcome.GONE, self._policy)
            if known is None or verdict is Verdict.RAISE:
                raise
            reason = error.reason if isinstance(error, UpstreamError) else "gone"
            if self._flights.flying(key):  # it was too slow for us; nobody else waits for it
                reason = trouble or reason
                self._troubles.put(key, reason)
            return Fetched(known.descriptor, Provenance(Kind.STALE, reason))
        return Fetched(found, Provenance(Kind.UPSTREAM), self._policy.tag_fresh_s)

    def _revalidate(self, repository: Repository, tag: Tag) -> None:
        """Ask in the background. Where too many questions wait, the next pull of the tag does it."""
        if self._flights.flying((repository, tag)):
            return
        try:
            self._flights.launch((repository, tag), lambda: self._flight(repository, tag))
        except SluiceError as error:
            _log.warning("tag %s of %s is not looked at again now: %s", tag, repository, error.message)
        else:
            self._counters.revalidations += 1

    async def _flight(self, repository: Repository, tag: Tag) -> Descriptor:
        """Ask, and remember how that went."""
        key = (repository, tag)
        try:
            found = await self._learn(repository, tag)
        except UpstreamError as error:
            self._troubles.put(key, error.reason)
            raise
        except (ManifestUnknown, NameUnknown):
            self._troubles.forget(key)
            await self._gone(repository, tag)
            raise
        self._troubles.forget(key)
        return found

    async def _gone(self, repository: Repository, tag: Tag) -> None:
        try:
            if self._policy.keep_gone:
                await self._store.tag_gone(repository, tag)
            else:
                await self._store.drop_tag(repository, tag, ACTOR)
        except SluiceError as error:
            _log.warning("that tag %s of %s is gone could not be noted: %s", tag, repository, error.message)

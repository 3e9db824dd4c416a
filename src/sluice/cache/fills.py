"""The fills of one store: who has one already, whose turn it is, and what became of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Sequence

from sluice.cache.answers import CacheCounters
from sluice.cache.fill import Fill
from sluice.cache.flights import again
from sluice.cache.policy import CachePolicy
from sluice.cache.recent import Recent
from sluice.cache.slots import Slots
from sluice.cache.sources import Opener
from sluice.cache.space import Space
from sluice.errors import SluiceError, Unavailable, UpstreamInvalid
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.local import LocalStore

WRONG_MAX = 10_000  # (repository, digest) whose bytes were wrong

_log = logging.getLogger(__name__)


class Fills:
    """The fills of one store, one for each digest. For one event loop; ``close`` before the store is closed."""

    def __init__(
        self,
        store: LocalStore,
        policy: CachePolicy,
        counters: CacheCounters,
        clock: Callable[[], float],
        space: Space | None = None,
    ) -> None:
        self.store = store
        self.policy = policy
        self.counters = counters
        self.space = space
        self.slots = Slots(policy.fills_max)
        self._fills: dict[Digest, Fill] = {}
        self._tasks: dict[asyncio.Task[None], Fill] = {}
        self._wrong: Recent[tuple[Repository, Digest], SluiceError] = Recent(WRONG_MAX, policy.negative_s, clock)
        self._shown = 0, 0  # of what the gauges tell, what is ours
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, digest: Digest) -> Fill | None:
        """The running or waiting fill of a digest."""
        found = self._fills.get(digest)
        return None if found is None or found.error is not None else found

    def begin(
        self,
        digest: Digest,
        repository: Repository,
        openers: Sequence[Opener],
        *,
        replace: bool = False,
        lane: Hashable = None,
    ) -> Fill:
        """The fill of a digest, joined or begun. ``openers``: the upstream, then its mirrors. ``replace`` what is held:
        it is damaged. ``lane``: whose slots it takes. Raises Unavailable where too many wait, and UpstreamInvalid
        shortly after wrong bytes came."""
        running = self.find(digest)
        if running is not None:
            running.join(repository)
            return running
        wrong = self._wrong.get((repository, digest))
        if wrong is not None:
            raise again(wrong)
        if self._closed:
            raise Unavailable("the cache is closed: the server is stopping")
        self._make_room()
        fill = self._fills[digest] = Fill(digest, repository, openers, self, replace=replace, lane=lane)
        fill.task = task = asyncio.create_task(self._run(fill), name=f"fill {digest}")
        self._tasks[task] = fill
        task.add_done_callback(lambda done: self._ended(fill, done))
        self.counters.fills_begun += 1
        self._gauge()
        return fill

    async def finish(self, digests: Collection[Digest] | None = None) -> None:
        """Wait until none runs or waits, or none of these; others may begin meanwhile."""
        while tasks := [task for task, fill in self._tasks.items() if digests is None or fill.digest in digests]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End all fills and drop what they brought; idempotent."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            if not task.cancelling():  # a second time would break off the tidying up
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> None:
        """Let one more wait: where the queue is full, one that nobody waits for leaves it, or Unavailable is raised."""
        alive = sum(fill.error is None for fill in self._tasks.values())
        if alive < self.policy.fills_max + self.policy.queue_max:
            return
        idle = self.slots.unwanted()
        if idle is None:
            running = self.slots.running
            raise Unavailable(
                f"the queue is full: {running} blobs are being fetched and {alive - running} more wait, try again"
            )
        idle.give_way()

    async def _run(self, fill: Fill) -> None:
        try:
            await self.slots.take(fill)
            fill.queued = False
            self._gauge()
            await fill.run()
        finally:
            self.slots.leave(fill)

    def _ended(self, fill: Fill, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if self._fills.get(fill.digest) is fill:
            del self._fills[fill.digest]
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            _log.error("the fill of blob %s failed", fill.digest, exc_info=failure)
        fill.end()
        self._gauge()
        if fill.complete:
            self.counters.fills_done += 1
            return
        if fill.gave_way:
            self.counters.fills_given_way += 1
            return
        self.counters.fills_failed += 1
        if isinstance(fill.error, UpstreamInvalid):
            self._wrong.put((fill.repositories[0], fill.digest), fill.error)

    def _gauge(self) -> None:
        before, self._shown = self._shown, (self.slots.running, len(self._tasks) - self.slots.running)
        self.counters.move_fills(before, self._shown)

"""The space of a cache: how much it may take, who is let in, and what leaves for it.

A fill asks ``admit`` before its first byte is written, for all of it where the upstream has told its size, and goes on
asking in steps of up to ``GRANT_BYTES`` where not. So what is held, what waits to be unlinked and what fills have been
granted together stay within ``max_bytes``, and the disk keeps ``storage.reserve_bytes`` free. Whoever cannot be let in,
because all else is pinned or in use or because it is larger than the whole budget, is passed through and not kept.

Room is made ahead: when something has to leave, a ``SPARE_PART`` of the budget more leaves with it, for each look at
all images costs time. Which images leave is decided by ``cache.evict``, and how by ``store.eviction``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sluice.cache.evict import Keep, Wish, find_busy, plan_eviction, why_kept
from sluice.errors import ImageKept, SluiceError, StorageFull
from sluice.oci.digest import Digest
from sluice.store.eviction import (
    NEVER_RAN,
    Outage,
    SpaceTotals,
    evict,
    find_outages,
    note_sweep,
    protect,
    read_totals,
    unlink_unread,
)
from sluice.store.images import HeldImage, Holdings, find_holdings
from sluice.store.local import LocalStore
from sluice.store.queries import held_among

GRANT_BYTES = 4 << 20
SPARE_PART = 20  # a twentieth
SWEEP_S = 60.0
ROUNDS_MAX = 3  # looks at all images for one admission: what was planned may have been used meanwhile

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """``max_bytes``: what the cache may take, 0 for as much as the disk has. ``ttl_s``: seconds without use after which
    an image leaves, 0 for never."""

    max_bytes: int = 0
    ttl_s: float = 168 * 3600.0


async def _nobody(names: Collection[str]) -> Collection[str]:
    del names
    return ()


@dataclass(frozen=True, slots=True)
class Reach:
    """``upstream_of`` names the upstream of a repository, ``unreachable`` those that are known not to answer now.
    ``ask`` asks these, and returns those of them that do not answer."""

    upstream_of: Callable[[str], str] = lambda _: ""
    unreachable: Callable[[], Collection[str]] = tuple
    ask: Callable[[Collection[str]], Awaitable[Collection[str]]] = _nobody


@dataclass(frozen=True, slots=True)
class SpaceStatus:
    """``used_bytes`` is ``held_bytes`` (contents), ``condemned_bytes`` (evicted, still read) and ``granted_bytes`` (to
    fills) together. ``oldest_use``: of all images, in seconds since the epoch; None where there are none."""

    used_bytes: int
    held_bytes: int
    condemned_bytes: int
    granted_bytes: int
    max_bytes: int
    free_bytes: int
    images: int
    pinned: int
    protected: int
    evicted_images: int
    evicted_bytes: int
    oldest_use: float | None


class Grant:
    """Room for one fill, or for one manifest; ``release`` gives it back once its bytes are held, or gone. ``entering``:
    its bytes are becoming the content ``digest``, and as soon as that has a row they count as held and not as granted.
    """

    def __init__(self, space: Space, size: int, digest: Digest | None) -> None:
        self._space = space
        self.size = size
        self.digest = digest
        self.written = 0
        self.entering = False

    async def reach(self, size: int) -> None:
        """``size`` bytes are going to be written in all; raises StorageFull."""
        if size > self.size:
            await self._space.extend(self, max(size, self.size + self._space.step_bytes))
        self.written = size

    def release(self) -> None:
        """Give it back; idempotent."""
        self._space.forget(self)


class Space:
    """The space of one store's cache. For one event loop. ``totals`` are as they were when last looked at."""

    def __init__(self, store: LocalStore, settings: SpaceSettings, reach: Reach | None = None) -> None:
        self.settings = settings
        self._store = store
        self._reach = reach or Reach()
        self.totals = SpaceTotals(0, 0, 0, 0, 0)
        self._grants: set[Grant] = set()
        self._granted = 0  # bytes, at the time of ``totals``
        self._lock = asyncio.Lock()

    def use(self, settings: SpaceSettings, reach: Reach) -> None:
        """Go on with other settings; what was let in stays, until the next sweep."""
        self.settings, self._reach = settings, reach

    @property
    def step_bytes(self) -> int:
        """By how much a grant grows whose end is not known: little enough not to drive out much for nothing."""
        most = self.settings.max_bytes // SPARE_PART if self.settings.max_bytes else GRANT_BYTES
        return min(GRANT_BYTES, most)

    @property
    def used_bytes(self) -> int:
        """What counts against ``max_bytes``, by ``totals``."""
        return self.totals.held + self.totals.condemned + self.granted_bytes

    async def refresh(self) -> None:
        """Look at the ``totals`` again. What is committed meanwhile counts once, as granted or as held."""
        grants = [(grant, grant.size) for grant in self._grants]
        digests = [grant.digest for grant, _ in grants if grant.digest is not None]
        self.totals, held = await self._store.index.fetch(lambda c: (read_totals(c), held_among(c, digests)))
        self._granted = sum(size for grant, size in grants if not (grant.entering and grant.digest in held))

    @property
    def granted_bytes(self) -> int:
        """What fills may write, or have written and not committed, by the last look."""
        return self._granted

    async def admit(self, size: int | None, digest: Digest | None = None) -> Grant:
        """Room for ``size`` bytes (None: not known yet), made where there is none; raises StorageFull. ``digest``: what
        they are going to be."""
        grant = Grant(self, 0, digest)
        self._grants.add(grant)
        try:
            await self.extend(grant, self.step_bytes if size is None else size)
        except BaseException:
            self.forget(grant)
            raise
        return grant

    async def extend(self, grant: Grant, size: int) -> None:
        """Let a grant grow to ``size``; raises StorageFull."""
        async with self._lock:
            more = size - grant.size
            for _ in range(ROUNDS_MAX):
                lacking = await self._lacking(more)
                if lacking <= 0:
                    grant.size = size
                    return
                if size > (self.settings.max_bytes or math.inf):
                    break
                wish = partial(self._wish, need_bytes=lacking, spare_bytes=self.settings.max_bytes // SPARE_PART)
                if not await self._evict_planned(wish):
                    break
            else:
                if await self._lacking(more) <= 0:
                    grant.size = size
                    return
            raise StorageFull(
                f"{more} bytes more do not fit: cache.max_bytes is {self.settings.max_bytes}, storage.reserve_bytes"
                f" {self._store.settings.reserve_bytes}, and what the cache holds is in use, pinned or too small:"
                " raise the one, lower the other or unpin images"
            )

    def forget(self, grant: Grant) -> None:
        """The grant's bytes are held by now, or gone."""
        self._grants.discard(grant)

    async def run(self) -> None:
        """Sweep every ``SWEEP_S`` seconds until cancelled; a failure is logged and tried again next time."""
        while True:
            try:
                await self.sweep()
            except (SluiceError, OSError) as error:
                _log.error("the cache could not be swept, it is tried again later: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Evict what nobody has used for ``ttl_s``, and what is too much where the budget was lowered; unlink what
        nobody reads any more."""
        silent = frozenset(self._reach.unreachable())
        await self._note(silent)
        await self._store.flush_touches()
        wish = partial(self._wish, ttl_s=self.settings.ttl_s)
        expired = await self._plan(partial(wish, silent=silent))
        if expired:
            silent |= await self._ask({self._reach.upstream_of(image.repository) for image in expired})
        async with self._lock:
            await _to_the_end(partial(unlink_unread, self._store))
            lacking = await self._lacking(0)
            if expired or lacking > 0:
                await self._evict_planned(partial(wish, spare_bytes=max(0, lacking), silent=silent))

    async def _ask(self, upstreams: Collection[str]) -> frozenset[str]:
        """Those that do not answer. When nobody has asked for long, nobody knows: and now images are about to leave."""
        silent = frozenset(await self._reach.ask(sorted(upstreams)))
        if silent:
            await self._note(silent)
        return silent

    async def _note(self, silent: Collection[str]) -> None:
        now = self._store.clock()
        await self._store.index.write(partial(note_sweep, now=now, silent=tuple(silent), interval_s=SWEEP_S))

    async def holdings(self) -> Holdings:
        """All images that are held."""
        await self._store.flush_touches()
        return await asyncio.to_thread(self._store.index.read, find_holdings)

    async def status(self) -> SpaceStatus:
        """How things stand."""
        holdings = await self.holdings()
        await self.refresh()
        totals = self.totals
        return SpaceStatus(
            used_bytes=self.used_bytes,
            held_bytes=totals.held,
            condemned_bytes=totals.condemned,
            granted_bytes=self.granted_bytes,
            max_bytes=self.settings.max_bytes,
            free_bytes=self._store.free_bytes(),
            images=len(holdings.images),
            pinned=sum(image.pinned for image in holdings.images),
            protected=sum(image.protected for image in holdings.images),
            evicted_images=totals.evicted_images,
            evicted_bytes=totals.evicted_bytes,
            oldest_use=min((image.used_at for image in holdings.images), default=None),
        )

    async def protect(self, references: Collection[str]) -> None:
        """Never evict what these name (``repository:tag``, ``repository@digest`` or a digest), and let go what an
        earlier call named. Survives restarts. Raises TooManyRequests."""
        wanted = sorted(set(references))
        await self._store.index.write(lambda connection: protect(connection, wanted))

    async def purge(self, image: HeldImage) -> int:
        """Evict this one, however lately it was used; returns the bytes that came free. Raises ImageKept where it is
        pinned, protected, in use or pushed here."""
        images = (await self.holdings()).images
        kept = why_kept(image, find_busy(images, self._store.leases.uses()))
        freed = None
        if kept is None:
            async with self._lock:
                freed = await _to_the_end(partial(evict, self._store, image, unused=False))
        if freed is None:
            kept = kept or Keep.IN_USE
            raise ImageKept(f"{image.name} stays, it is {kept.value}{_REMEDIES.get(kept, '')}")
        return freed

    async def _lacking(self, more: int) -> int:
        """Bytes that must come free before ``more`` may be written; not positive where none must. What was evicted
        while somebody looked at it goes first: nobody else has to leave for that."""
        await self.refresh()
        if self._missing(more) > 0 and self.totals.condemned:
            await _to_the_end(partial(unlink_unread, self._store))
            await self.refresh()
        return self._missing(more)

    def _missing(self, more: int) -> int:
        unwritten = sum(max(0, grant.size - grant.written) for grant in self._grants)
        lacking = more + unwritten - self._store.free_bytes()
        if self.settings.max_bytes:
            lacking = max(lacking, self.used_bytes + more - self.settings.max_bytes)
        return lacking

    def _wish(
        self,
        outages: dict[str, list[Outage]],
        repositories: Collection[str],
        *,
        need_bytes: int = 0,
        spare_bytes: int = 0,
        ttl_s: float = math.inf,
        silent: Collection[str] = (),
    ) -> Wish:
        always = outages.get(NEVER_RAN, [])
        upstreams = {name: self._reach.upstream_of(name) for name in repositories}
        by_repository = {name: [*always, *outages.get(upstream, [])] for name, upstream in upstreams.items()}
        unasked = frozenset(name for name, upstream in upstreams.items() if upstream in silent)
        in_use = self._store.leases.uses()
        return Wish(self._store.clock(), need_bytes, spare_bytes, ttl_s, in_use, by_repository, unasked)

    async def _plan(self, make_wish: Callable[..., Wish]) -> tuple[HeldImage, ...]:
        """Look at everything, and say what would leave."""
        holdings = await self.holdings()
        outages = await self._store.index.fetch(find_outages)
        wish = make_wish(outages, {image.repository for image in holdings.images})
        return plan_eviction(holdings.images, holdings.sizes, wish)

    async def _evict_planned(self, make_wish: Callable[..., Wish]) -> bool:
        """Plan, and do it; whether anything left."""
        left = 0
        for image in await self._plan(make_wish):
            freed = await _to_the_end(partial(evict, self._store, image))
            if freed is not None:
                left += 1
                _log.info("%s left the cache, %d bytes came free", image.name, freed)
        return left > 0


async def _to_the_end(work: Callable[[], T]) -> T:
    """Run in a thread. Who is cancelled waits for it all the same, so that the store is not closed under it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # nobody else takes it
        raise


_REMEDIES = {Keep.PINNED: ": unpin it first", Keep.IN_USE: ": wait until nobody reads it"}

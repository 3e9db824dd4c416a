"""Slots: no upstream starves another, and what nobody reads waits for what somebody reads."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, OTHER, PATIENCE_S, POLICY, Body, Cache, Upstream, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.pullthrough import PullThrough
from sluice.cache.slots import SHARES_FACTOR
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest
from sluice.testing.content import image

DATA = os.urandom(500_000)
FEW = replace(POLICY, fills_max=4, queue_s=PATIENCE_S)
HANGING = [DATA[number + 1 :] for number in range(FEW.fills_max)]
STEPS = 30
TURN_S = 0.0005
SOON_S = 5.0  # far below PATIENCE_S


@asynccontextmanager
async def beside(cache: Cache) -> AsyncIterator[tuple[Upstream, PullThrough]]:
    """Another upstream, through the same store and fills."""
    upstream = Upstream()
    pull = PullThrough(cache.store, upstream, cache.fills, policy=cache.pull.policy, clock=cache.clock)
    try:
        yield upstream, pull
    finally:
        await pull.close()
        assert upstream.open_readers == 0


async def hang(cache: Cache, gate: asyncio.Event) -> list[BlobReader]:
    """A fill in each slot that stands still until ``gate``, each with a reader."""
    body = Body(stop_at=200_000, gate=gate)
    digests = [cache.upstream.add_blob(data, body) for data in HANGING]
    return [await cache.pull.open_blob(APP, digest) for digest in digests]


async def stay(readers: list[BlobReader]) -> list[bytes]:
    """What they get who stay to the end."""
    return list(await asyncio.gather(*map(read_all, readers)))


def leave(readers: list[BlobReader]) -> None:
    """Nobody reads these fills any more."""
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("read", [True, False])
async def test_a_slow_upstream_starves_no_other(tmp_path: Path, read: bool) -> None:
    """With every slot taken by fills of an upstream that stands still, read or not, a blob of another upstream begins
    at once; so do as many as are its share, and never more than ``SHARES_FACTOR`` times the slots run."""
    async with caching(tmp_path, FEW) as cache, beside(cache) as (healthy, pull):
        gate = asyncio.Event()
        readers = await hang(cache, gate)
        if not read:
            leave(readers)
        began = time.monotonic()
        fetched = await pull.fetch_blob(OTHER, healthy.add_blob(DATA))
        assert (Kind.STARTED, DATA) == (fetched.provenance.kind, await read_all(fetched.value))
        slow = [healthy.add_blob(os.urandom(9), Body(head=gate)) for _ in range(SHARES_FACTOR * FEW.fills_max)]
        opening = [asyncio.create_task(pull.open_blob(OTHER, digest)) for digest in slow]
        expected = FEW.fills_max + FEW.fills_max // 2 if read else FEW.fills_max
        await until(lambda: (expected, len(slow)) == (cache.fills.slots.running, healthy.asked["open"] + _left(cache)))
        assert time.monotonic() - began < SOON_S
        gate.set()
        assert [9] * len(slow) == [len(await read_all(reader)) for reader in await asyncio.gather(*opening)]
        if read:
            assert HANGING == await stay(readers)


def _left(cache: Cache) -> int:
    """How many wait, the blob before them taken off."""
    return cache.counters.fills_queued - 1


async def test_what_nobody_reads_gives_way(tmp_path: Path) -> None:
    """With every slot taken by fills whose readers have left, a blob that somebody asks the same upstream for begins
    at once; the one that gave way leaves nothing behind, is no failure, and comes whole when it is asked for again."""
    async with caching(tmp_path, FEW) as cache:
        gate = asyncio.Event()
        leave(await hang(cache, gate))
        fetched = await cache.pull.fetch_blob(APP, cache.upstream.add_blob(DATA))
        assert (Kind.STARTED, DATA) == (fetched.provenance.kind, await read_all(fetched.value))
        assert (1, 0) == (cache.counters.fills_given_way, cache.counters.fills_failed)
        gate.set()
        await cache.idle()
        assert FEW.fills_max == cache.counters.fills_done
        assert HANGING == [await _pulled(cache, Digest.of(data)) for data in HANGING]


async def test_what_is_read_never_gives_way(tmp_path: Path) -> None:
    """With every slot taken by fills that are read, a further one waits, and each reader gets its blob."""
    async with caching(tmp_path, FEW) as cache:
        gate = asyncio.Event()
        readers = await hang(cache, gate)
        waiting = asyncio.create_task(cache.pull.open_blob(APP, cache.upstream.add_blob(DATA)))
        await until(lambda: cache.counters.fills_queued)
        gate.set()
        assert DATA == await read_all(await waiting)
        assert HANGING == await stay(readers)
        assert 0 == cache.counters.fills_given_way


@pytest.mark.parametrize("offset", [0, 100_000])
async def test_a_queue_is_gone_past(tmp_path: Path, offset: int) -> None:
    """A reader whose fill is still queued after ``queue_s`` is served straight from the upstream, from where it begins,
    and told and counted so; the blob is kept later all the same."""
    async with caching(tmp_path, replace(FEW, queue_s=0.05)) as cache:
        gate = asyncio.Event()
        readers = await hang(cache, gate)
        digest = cache.upstream.add_blob(DATA)
        for _ in range(2):
            fetched = await cache.pull.fetch_blob(APP, digest, offset)
            assert (Kind.BYPASS, "queue") == (fetched.provenance.kind, fetched.provenance.reason)
            assert DATA[offset:] == await read_all(fetched.value, start=offset)
        assert ({"queue": 2}, offset) == (cache.counters.bypassed, cache.upstream.offsets[-1])
        gate.set()
        assert HANGING == await stay(readers)
        await cache.idle()
        assert DATA == await read_all(await cache.store.open_blob(APP, digest))


async def test_a_full_queue_drops_what_nobody_waits_for(tmp_path: Path) -> None:
    """Where the queue is full of blobs whose readers went past, one more may wait in the place of the first."""
    async with caching(tmp_path, replace(FEW, queue_max=2, queue_s=0.05)) as cache:
        gate = asyncio.Event()
        readers = await hang(cache, gate)
        for number in range(4):
            data = DATA[100 + number :]
            assert data == await read_all(await cache.pull.open_blob(APP, cache.upstream.add_blob(data)))
        assert (2, 2) == (cache.counters.fills_given_way, cache.counters.fills_queued)
        gate.set()
        assert HANGING == await stay(readers)


async def test_prefetches_give_way(tmp_path: Path) -> None:
    """Layers that nobody has asked for yet take every free slot, and give it to the first who asks for something."""
    async with caching(tmp_path, replace(FEW, prefetch=True)) as cache:
        gate = asyncio.Event()
        manifest = cache.upstream.add_image(image(b"{}", *HANGING), b"{}", *HANGING)
        for digest in list(cache.upstream.scripts):
            cache.upstream.scripts[digest] = [Body(head=gate)]
        await cache.pull.manifest(APP, manifest.digest)
        await until(lambda: cache.counters.fills_active == FEW.fills_max)
        fetched = await cache.pull.fetch_blob(APP, cache.upstream.add_blob(DATA))
        assert (Kind.STARTED, DATA) == (fetched.provenance.kind, await read_all(fetched.value))
        assert (FEW.fills_max, 1) == (cache.counters.fills_prefetched, cache.counters.fills_given_way)
        gate.set()


async def test_a_fill_may_give_way_at_every_stage(tmp_path: Path) -> None:
    """Whatever a fill that nobody reads is at when it must give way, nothing is left of it, also where the cache is
    closed in the next moment; who comes back for it gets it whole."""
    for step in range(STEPS):
        async with caching(tmp_path / str(step), replace(FEW, fills_max=1)) as cache:
            digest, other = cache.upstream.add_blob(DATA), cache.upstream.add_blob(DATA[1:])
            cache.fills.begin(digest, APP, cache.pull._upstream.openers(APP, digest))
            await asyncio.sleep(step * TURN_S)
            got = await asyncio.gather(*(_pulled(cache, one) for one in (other, digest)))
            assert [DATA[1:], DATA] == got
            third = asyncio.create_task(_pulled(cache, cache.upstream.add_blob(DATA[2:])))
            await asyncio.sleep(step % 4 * TURN_S)
            await cache.fills.close()
            await asyncio.gather(third, return_exceptions=True)


async def _pulled(cache: Cache, digest: Digest) -> bytes:
    return await read_all(await cache.pull.open_blob(APP, digest))

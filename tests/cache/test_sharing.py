"""Fills for many: a bounded number of them, in order, and for every repository that may have the blob."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sized
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cache.scripted import APP, OTHER, PATIENCE_S, POLICY, Body, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.fills import Fills
from sluice.errors import BlobUnknown, Unavailable, UpstreamInvalid, UpstreamUnauthorized
from sluice.oci.reference import Repository

DATA = os.urandom(3_000_000)
SMALL = os.urandom(50_000)


async def test_fills_are_limited_and_wait_in_order(tmp_path: Path) -> None:
    """``fills_max`` run, ``queue_max`` wait for their turn in the order in which they came, and more are refused."""
    async with caching(tmp_path, replace(POLICY, fills_max=2, queue_max=3, queue_s=PATIENCE_S)) as cache:
        gates = [asyncio.Event() for _ in range(5)]
        blobs = [bytes([number]) * 10 for number in range(6)]
        digests = [
            cache.upstream.add_blob(data, Body(head=gate)) for data, gate in zip(blobs, [*gates, gates[0]], strict=True)
        ]
        opening = []
        for digest in digests[:5]:
            opening.append(asyncio.create_task(cache.pull.open_blob(APP, digest)))
            await until(partial(_counts, cache.fills, len(opening)))
        with pytest.raises(Unavailable, match="2 blobs are being fetched and 3 more wait"):
            await cache.pull.open_blob(APP, digests[5])
        await until(lambda: cache.counters.fills_active == 2)
        assert cache.counters.fills_queued == 3
        for number, gate in enumerate(gates):
            await until(partial(_counts, cache.upstream.offsets, min(number + 2, 5)))
            gate.set()
            assert await read_all(await opening[number]) == blobs[number]


async def test_fills_over_one_store_are_counted_together(tmp_path: Path) -> None:
    """Two sets of fills, as while a mode is left and another one has begun, tell what runs and waits in both."""
    async with caching(tmp_path, replace(POLICY, fills_max=1)) as cache:
        gates = [asyncio.Event(), asyncio.Event()]
        newer = Fills(cache.store, cache.fills.policy, cache.counters, cache.clock)
        for fills, gate in zip((cache.fills, newer), gates, strict=True):
            for size in (1000, 2000):
                digest = cache.upstream.add_blob(os.urandom(size), Body(head=gate))
                fills.begin(digest, APP, [partial(cache.upstream.open_blob, APP, digest)])
        await until(lambda: (2, 2) == (cache.counters.fills_active, cache.counters.fills_queued))
        gates[0].set()
        await cache.idle()
        assert (1, 1) == (cache.counters.fills_active, cache.counters.fills_queued)
        gates[1].set()
        await newer.finish()
        assert (0, 0, 4) == (cache.counters.fills_active, cache.counters.fills_queued, cache.counters.fills_done)


def _counts(things: Sized, number: int) -> bool:
    return len(things) == number


async def test_everybody_who_waited_may_read_it(tmp_path: Path) -> None:
    """A blob that several repositories waited for is readable in all of them, and in no other: there the upstream of
    that repository is asked first, once."""
    async with caching(tmp_path) as cache:
        gate = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(stop_at=1000, gate=gate), Body())
        first = await cache.pull.open_blob(APP, digest)
        second = await cache.pull.fetch_blob(OTHER, digest)
        assert (Kind.JOINED, 2) == (second.provenance.kind, cache.upstream.asked["open"])
        gate.set()
        assert await read_all(first) == DATA == await read_all(second.value)
        await cache.idle()
        for repository in (APP, OTHER):
            assert await read_all(await cache.store.open_blob(repository, digest)) == DATA
        stranger = Repository("team/stranger")
        with pytest.raises(BlobUnknown):
            await cache.store.open_blob(stranger, digest)
        taken = cache.upstream.blobs.pop(digest)
        with pytest.raises(BlobUnknown):
            await cache.pull.open_blob(stranger, digest)
        cache.upstream.blobs[digest] = taken
        cache.clock.now += POLICY.negative_s
        asked, sent = cache.upstream.asked["open"], cache.upstream.sent_bytes
        assert await read_all(await cache.pull.open_blob(stranger, digest)) == DATA
        assert (asked + 1, sent) == (cache.upstream.asked["open"], cache.upstream.sent_bytes)


@pytest.mark.parametrize("failing", [Body(refuse=UpstreamUnauthorized("not for you")), Body(flip_at=0)])
async def test_one_repositorys_upstream_does_not_fail_another(tmp_path: Path, failing: Body) -> None:
    """Who joined a fill that another repository's upstream fails, or lies to, is served by a fill of its own."""
    async with caching(tmp_path) as cache:
        head = asyncio.Event()
        digest = cache.upstream.add_blob(SMALL, replace(failing, head=head), Body())
        first = asyncio.create_task(cache.pull.open_blob(APP, digest))
        await until(lambda: cache.upstream.offsets)
        second = asyncio.create_task(cache.pull.open_blob(OTHER, digest))
        await until(lambda: len(cache.upstream.offsets) == 2)
        await asyncio.sleep(0.02)
        head.set()
        with pytest.raises((UpstreamUnauthorized, UpstreamInvalid)):
            await first
        assert await read_all(await second) == SMALL

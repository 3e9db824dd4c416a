"""Whatever is cut off at whatever stage: no task, no file, no byte and no open file is left (``caching`` looks)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, LATEST, POLICY, Body, Cache, caching, read_all, until
from sluice.errors import SluiceError, Unavailable, UpstreamFailed
from sluice.oci.digest import Digest
from sluice.testing.content import image

DATA = os.urandom(1_500_000)
STEPS = 50  # stages at which something is cut off
TURN_S = 0.0002


async def pull(cache: Cache, digest: Digest) -> bytes:
    return await read_all(await cache.pull.open_blob(APP, digest))


async def turns(number: int) -> None:
    """Let the others get a little further, each time by a little more."""
    for _ in range(number):
        await asyncio.sleep(TURN_S)


@pytest.mark.parametrize("sized", [True, False])
async def test_readers_may_leave_at_every_stage(tmp_path: Path, sized: bool) -> None:
    """Readers that are cancelled after any number of turns leave the fill alone: it ends well, by one call each."""
    async with caching(tmp_path) as cache:
        for step in range(STEPS):
            data = DATA[step:]
            digest = cache.upstream.add_blob(data, Body(sized=sized))
            readers = [asyncio.create_task(pull(cache, digest)) for _ in range(3)]
            for reader in readers:
                await turns(step)
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await cache.idle()
            if digest.hex in cache.contents():
                assert await read_all(await cache.store.open_blob(APP, digest)) == data
        assert cache.upstream.asked["open"] <= STEPS
        assert cache.counters.fills_done == cache.counters.fills_begun > STEPS // 2
        assert cache.uploads() == []


async def test_the_cache_may_be_closed_at_every_stage(tmp_path: Path) -> None:
    """Closed after any number of turns, with readers at work: each gets an error or the whole blob, no spool is left,
    and content is there whole or not at all."""
    for step in range(STEPS):
        async with caching(tmp_path / str(step)) as cache:
            blobs = [DATA[step + number :] for number in range(3)]
            digests = [cache.upstream.add_blob(data) for data in blobs]
            readers = [asyncio.create_task(pull(cache, digest)) for digest in digests for _ in range(2)]
            await turns(step)
            await cache.fills.close()
            for number, got in enumerate(await asyncio.gather(*readers, return_exceptions=True)):
                assert isinstance(got, SluiceError) or got == blobs[number // 2]
            assert cache.uploads() == []
            for digest, data in zip(digests, blobs, strict=True):
                if digest.hex in cache.contents():
                    assert await read_all(await cache.store.open_blob(APP, digest)) == data


@pytest.mark.parametrize("stage", ["waiting for a slot", "waiting for the head", "stalled", "pausing", "committing"])
async def test_a_fill_that_waits_is_closed_too(tmp_path: Path, stage: str) -> None:
    """A fill that stands still at any stage ends when the cache is closed, and its reader is told that the server is
    stopping; later requests are refused."""
    never = asyncio.Event()
    bodies = {
        "waiting for a slot": [Body(head=never)],
        "waiting for the head": [Body(head=never)],
        "stalled": [Body(stop_at=400_000, gate=never)],
        "pausing": [Body(cut_at=400_000), Body(refuse=UpstreamFailed("503"))],
        "committing": [Body()],
    }
    async with caching(tmp_path, replace(POLICY, fills_max=1, queue_s=3600.0, fill_pause_s=3600.0)) as cache:
        if stage == "waiting for a slot":
            other = asyncio.create_task(pull(cache, cache.upstream.add_blob(b"first", Body(head=never))))
            await until(lambda: cache.counters.fills_active)
        digest = cache.upstream.add_blob(DATA, *bodies[stage])
        lock = cache.store.content_lock(digest)
        with lock:
            reader = asyncio.create_task(pull(cache, digest))
            await until(lambda: cache.fills.find(digest))
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(cache.fills.close())
            await asyncio.sleep(0.05)
        await closing
        if stage == "committing":
            # What was being committed is content now; who waited for its end was told, or has it.
            got = (await asyncio.gather(reader, return_exceptions=True))[0]
            assert isinstance(got, Unavailable) or got == DATA
        else:
            with pytest.raises(Unavailable, match="stopping"):
                await reader
            assert cache.contents() == set()
        if stage == "waiting for a slot":
            await asyncio.gather(other, return_exceptions=True)
        with pytest.raises(Unavailable, match="stopping"):
            await cache.pull.open_blob(APP, cache.upstream.add_blob(b"later"))


async def test_an_upstream_that_comes_back_is_used(tmp_path: Path) -> None:
    """Gone in mid-body and back before the patience ends: the fill ends well, its readers notice nothing."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(DATA)
        away = [Body(refuse=UpstreamFailed("refused"))] * (POLICY.fill_tries - 2)
        cache.upstream.scripts[digest] = [Body(cut_at=400_000), *away, Body()]
        assert await asyncio.gather(*(pull(cache, digest) for _ in range(5))) == [DATA] * 5
        assert cache.upstream.sent_bytes == len(DATA)


async def test_questions_may_be_left_and_closed(tmp_path: Path) -> None:
    """Who asks for a tag or manifest may leave, and the answer is kept; closing ends the questions that still wait."""
    async with caching(tmp_path) as cache:
        manifest = cache.upstream.add_image(image(b"{}", DATA), b"{}", DATA)
        cache.upstream.gate = asyncio.Event()
        askers = [asyncio.create_task(cache.pull.resolve(APP, LATEST)) for _ in range(5)]
        await until(lambda: cache.upstream.asked["resolve"])
        for asker in askers:
            asker.cancel()
        await asyncio.gather(*askers, return_exceptions=True)
        cache.upstream.gate.set()
        async with asyncio.timeout(20):
            while await cache.store.cached_tag(APP, LATEST) is None:
                await asyncio.sleep(0.001)
        assert cache.upstream.asked == {"resolve": 1, "manifest": 1}
        cache.upstream.gate = asyncio.Event()
        other = asyncio.create_task(cache.pull.manifest(APP, Digest.of(b"other")))
        await until(lambda: cache.upstream.asked["manifest"] == 2)
        await cache.pull.close()
        with pytest.raises(Unavailable, match="stopping"):
            await other
        assert (await cache.store.resolve(APP, LATEST)).digest == manifest.digest

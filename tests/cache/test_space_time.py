"""A cache's images over time: what expires, what happens between the end of rows and files, what is remembered."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cache.scripted import APP, Clock, caching, read_all
from cache.test_space import LAYERS, ROOM, WIDE, A, B, C, D, add, held, pull
from sluice.cache.space import SWEEP_S, SpaceSettings
from sluice.errors import TooManyRequests
from sluice.store.eviction import OUTAGES_MAX, PROTECTED_MAX, _Eviction, find_outages, note_sweep, unlink_unread
from sluice.store.scrub import check
from sluice.testing.content import index


async def test_unused_images_expire_while_the_upstream_is_there(tmp_path: Path) -> None:
    """An image leaves after ``ttl_s`` without use. An outage of its upstream does not count, nor does the time in which
    no cache ran."""
    clock = Clock()
    async with caching(tmp_path / "data", space=WIDE, clock=clock) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        await cache.space.sweep()
        clock.now += 50
        cache.unreachable.add("")
        for _ in range(40):
            await cache.space.sweep()
            clock.now += SWEEP_S
        await cache.space.sweep()
        assert ["a"] == await held(cache)
        cache.unreachable.clear()
    clock.now += 5000
    async with caching(tmp_path / "data", space=WIDE, clock=clock) as cache:
        await cache.space.sweep()
        assert ["a"] == await held(cache)
        for _ in range(14):
            clock.now += SWEEP_S
            await cache.space.sweep()
        assert ["a"] == await held(cache)
        for _ in range(3):
            clock.now += SWEEP_S
            await cache.space.sweep()
        assert ([], set()) == (await held(cache), cache.contents())


async def test_a_smaller_budget_is_kept_from_the_next_sweep_on(tmp_path: Path) -> None:
    """Where the budget was lowered, what is too much leaves."""
    clock = Clock()
    async with caching(tmp_path / "data", space=SpaceSettings(0, 0), clock=clock) as cache:
        for tag, layer in zip((A, B, C), LAYERS, strict=False):
            add(cache, tag, layer)
            await pull(cache, tag)
    async with caching(tmp_path / "data", space=ROOM, clock=clock) as cache:
        await cache.space.sweep()
        assert ["b", "c"] == await held(cache)


async def test_a_refill_before_the_unlinking_survives(tmp_path: Path) -> None:
    """Between the end of the rows and the end of the files a fill may bring content back: its file stays. A file that
    is read stays until it is not."""
    async with caching(tmp_path / "data", space=WIDE) as cache:
        manifest = add(cache, A, LAYERS[0])
        await pull(cache, A)
        (found,) = (await cache.space.holdings()).images
        change = _Eviction(cache.store, found, unused=False)
        gone = await cache.store.index.write(change.run)
        cache.store.touches.unblock(change.blocked)
        assert 3 == len(gone or {})
        layer = manifest.children[1].digest
        lease = cache.store.leases.take(APP, manifest.digest)
        await read_all(await cache.pull.open_blob(APP, layer))
        await cache.idle()
        await asyncio.to_thread(unlink_unread, cache.store)
        assert {layer.hex, manifest.digest.hex} == cache.contents()
        cache.store.leases.drop(lease)
        await cache.space.sweep()
        assert {layer.hex} == cache.contents()
        assert LAYERS[0] == await read_all(await cache.store.open_blob(APP, layer))


async def test_a_use_between_plan_and_eviction_keeps_the_image(tmp_path: Path) -> None:
    """What was used, tagged or pinned after the plan was made stays."""
    async with caching(tmp_path / "data", space=WIDE) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        (found,) = (await cache.space.holdings()).images
        cache.clock.now += 1
        await cache.pull.resolve(APP, A)
        assert await cache.store.index.write(_Eviction(cache.store, found, unused=True).run) is None
        (found,) = (await cache.space.holdings()).images
        await cache.pull.pin(APP, A)
        assert await cache.store.index.write(_Eviction(cache.store, found, unused=False).run) is None


async def test_what_is_left_is_whole(tmp_path: Path) -> None:
    """After any eviction a check of the store finds nothing wrong: no row without a file and no file without a row."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        first, second = add(cache, A, LAYERS[0]), add(cache, B, LAYERS[1])
        cache.upstream.add_image(index(first, second), tag=C)
        add(cache, D, LAYERS[0], LAYERS[2])
        for tag in (C, A, D, B, C):
            await pull(cache, tag)
        assert (await cache.space.status()).evicted_images > 0
        assert (await asyncio.to_thread(check, cache.store)).clean


async def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    """There is a limit to what a controller can name, and to the outages that are remembered."""
    async with caching(tmp_path / "data", space=WIDE) as cache:
        with pytest.raises(TooManyRequests):
            await cache.space.protect([str(number) for number in range(PROTECTED_MAX + 1)])
        cache.unreachable.add("")
        await cache.space.sweep()

        def many(connection: sqlite3.Connection) -> int:
            for number in range(OUTAGES_MAX + 5):
                note_sweep(connection, cache.clock.now + 1000 * number, [""], SWEEP_S)
            return max(map(len, find_outages(connection).values()))

        assert OUTAGES_MAX == await cache.store.index.write(many)

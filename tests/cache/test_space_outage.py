"""An outage that nobody has noticed, because nobody asked: images that are about to leave for their age stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.scripted import Clock, read_all, until
from sluice.cache.answers import CacheCounters
from sluice.cache.space import SWEEP_S, Space
from sluice.config import load_config
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.server.modes import Ground, wire
from sluice.server.settings import space_settings, store_settings
from sluice.server.wiring import Wiring
from sluice.store.local import LocalStore
from sluice.testing.upstreams import Failing, Fault, Stall, UpstreamContent, UpstreamServer
from sluice.testing.upstreams.seen import Kind

APP, OTHER = Repository("team/app"), Repository("quay.io/team/app")
TTL_S = 100


@dataclass
class House:
    """A cache before two upstreams, and the clock that it works by."""

    wiring: Wiring
    space: Space
    clock: Clock

    async def pull(self, repository: Repository, layer: bytes) -> None:
        """An image of one layer, until all of it is held."""
        manifest = (await self.wiring.fetcher.fetch_named(repository, Tag("v1"))).value
        for child in manifest.children:
            await read_all((await self.wiring.fetcher.fetch_blob(repository, child.digest)).value)
        await self.wiring.finish()
        assert Digest.of(layer) in [child.digest for child in manifest.children]

    async def sweep(self, times: int) -> None:
        """As often as a server does, while so much time passes."""
        for _ in range(times):
            await self.space.sweep()
            self.clock.now += SWEEP_S

    async def held(self) -> list[str]:
        """The repositories with an image."""
        return sorted(image.repository for image in (await self.space.holdings()).images)


@asynccontextmanager
async def house(data: Path, upstream: UpstreamServer, other: UpstreamServer) -> AsyncIterator[House]:
    """Proxy mode; afterwards no task is left."""
    before = asyncio.all_tasks()
    flags = {
        "mode": "proxy",
        "data": str(data),
        "upstream.address": upstream.address,
        "upstream.head_s": "1s",
        "registries": f"quay.io={other.address}",
        "cache.ttl_s": f"{TTL_S}s",
        "storage.reserve_bytes": "0",
    }
    config = load_config(None, {}, flags)
    clock = Clock()
    store = LocalStore.open(data, store_settings(config), clock)
    await store.start()
    space = Space(store, space_settings(config))
    wiring = wire(config, Ground(store, CacheCounters(), space))
    try:
        yield House(wiring, space, clock)
    finally:
        await wiring.retire()
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        await store.close()
    assert set() == {task for task in left if "upstream" in repr(task.get_coro())}


def pings(server: UpstreamServer) -> int:
    """How often it was asked whether it is there."""
    return sum(one.kind is Kind.PING for one in server.requests)


def upstreams() -> tuple[UpstreamServer, UpstreamServer]:
    """Two, with an image each."""
    contents = [UpstreamContent() for _ in range(2)]
    for content, layer in zip(contents, (b"one", b"two"), strict=True):
        content.push_image("team/app", "v1", [layer])
    return UpstreamServer(contents[0]), UpstreamServer(contents[1])


async def test_an_outage_that_nobody_noticed_keeps_images(tmp_path: Path) -> None:
    """The upstream stops, and nobody asks for longer than the ttl: its images stay, until some time after it is back;
    those of another upstream leave in time."""
    upstream, other = upstreams()
    with other, upstream:
        async with house(tmp_path / "data", upstream, other) as here:
            await here.pull(APP, b"one")
            await here.pull(OTHER, b"two")
            upstream.stop()
            await here.sweep(2)
            assert (["quay.io/team/app", "team/app"], 0, 0) == (await here.held(), pings(upstream), pings(other))
            await here.sweep(3)
            assert (["team/app"], 1) == (await here.held(), pings(other))
            assert here.wiring.upstreams["default"].is_broken
            upstream.start()
            await until(lambda: not here.wiring.upstreams["default"].is_broken)
            await here.sweep(2)
            assert [] == await here.held()


@pytest.mark.parametrize("faults", [[Failing(503)], [Stall()]], ids=["503", "stalls"])
async def test_so_does_one_that_fails_at_everything(tmp_path: Path, faults: Sequence[Fault]) -> None:
    """One that accepts connections and gives no answer is asked at each sweep, and its images stay."""
    upstream, other = upstreams()
    with upstream, other:
        async with house(tmp_path / "data", upstream, other) as here:
            await here.pull(APP, b"one")
            upstream.faults = faults
            await here.sweep(5)
            assert ["team/app"] == await here.held()

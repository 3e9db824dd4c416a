"""An upstream that says when to come back is left alone until then."""

from __future__ import annotations

import asyncio

import pytest

from sluice.errors import UpstreamRateLimited
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.testing.upstreams import RateLimited, UpstreamContent, UpstreamServer, blobs, manifests
from sluice.upstream.hold import HOLD_MAX_S
from sluice.upstream.registry import RemoteRegistry
from upstream.scripted import registry_at

APP = Repository("team/app")
LAYER = b"layer"


def held() -> UpstreamContent:
    """One image."""
    content = UpstreamContent()
    content.push_image(APP, "v1", [LAYER])
    return content


async def refused(registry: RemoteRegistry, tag: str) -> int | None:
    """The time to wait that a tag's request is answered with."""
    with pytest.raises(UpstreamRateLimited) as caught:
        await registry.resolve(APP, Tag(tag))
    return caught.value.retry_after_s


def test_it_is_asked_once_until_the_time_is_over() -> None:
    """Five further tags are answered with the rest of the time, and the upstream is not asked; then it is. Its circuit
    is closed all the while, and blobs come."""

    async def story() -> None:
        now = [0.0]
        with UpstreamServer(held(), faults=[RateLimited(60, when=manifests)]) as server:
            registry = registry_at(server.address, clock=lambda: now[0])
            assert 60 == await refused(registry, "v1")
            now[0] = 20.5
            assert [40] * 5 == [await refused(registry, f"v{number}") for number in range(5)]
            assert (1, False) == (len(server.requests), registry.is_broken)
            (await registry.open_blob(APP, Digest.of(LAYER))).close()
            server.faults = []
            now[0] = 60.0
            await registry.resolve(APP, Tag("v1"))
            await registry.close()

    asyncio.run(story())


def test_a_limit_on_blobs_leaves_manifests_alone() -> None:
    """What is asked for is held back, and nothing else."""

    async def story() -> None:
        with UpstreamServer(held(), faults=[RateLimited(60, when=blobs)]) as server:
            registry = registry_at(server.address)
            for _ in range(3):
                with pytest.raises(UpstreamRateLimited):
                    await registry.open_blob(APP, Digest.of(LAYER))
            assert 1 == len(server.requests)
            await registry.resolve(APP, Tag("v1"))
            await registry.close()

    asyncio.run(story())


def test_nobody_is_held_back_for_ever() -> None:
    """However long a wait the upstream asks for, it is asked again after ``HOLD_MAX_S``; without a time, at once."""

    async def story() -> None:
        now = [0.0]
        with UpstreamServer(held(), faults=[RateLimited(3600)]) as server:
            registry = registry_at(server.address, clock=lambda: now[0])
            assert 3600 == await refused(registry, "v1")
            assert HOLD_MAX_S == await refused(registry, "v1")
            now[0] = HOLD_MAX_S
            assert 3600 == await refused(registry, "v1")
            now[0] *= 2
            server.faults = [RateLimited()]
            assert [None, None] == [await refused(registry, "v1") for _ in range(2)]
            assert 4 == len(server.requests)
            await registry.close()

    asyncio.run(story())

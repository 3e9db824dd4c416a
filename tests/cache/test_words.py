"""One store before several upstreams: each repository has what its own upstream gave it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache.scripted import LATEST, POLICY, Body, Cache, Upstream, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.fills import Fills
from sluice.cache.policy import CachePolicy
from sluice.cache.pullthrough import PullThrough
from sluice.errors import BlobUnknown, ManifestUnknown, UpstreamFailed
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.testing.content import image

APP, BASE, EVIL = Repository("ours/app"), Repository("ours/base"), Repository("evil/app")
CONFIG, LAYER = b"{}", os.urandom(300_000)
IMAGE = image(CONFIG, LAYER)


@dataclass
class Before:
    """Caches over one store, before upstreams whose name is the first part of a repository's."""

    ours: PullThrough
    evil: PullThrough
    upstream: Upstream
    evils: Upstream
    fills: Fills


def before(cache: Cache, ours: str = "ours", policy: CachePolicy = POLICY) -> Before:
    """``ours``: what the upstream is called that has the image."""
    words = {"ours": ours, "evil": "evil"}
    store = cache.store.seen_by(lambda repository: words[repository.partition("/")[0]])
    fills = Fills(store, policy, cache.counters, cache.clock)
    upstream, evils = Upstream(), Upstream()
    one, other = (PullThrough(store, source, fills, policy=policy, clock=cache.clock) for source in (upstream, evils))
    return Before(one, other, upstream, evils, fills)


@asynccontextmanager
async def standing(cache: Cache, ours: str = "ours", policy: CachePolicy = POLICY) -> AsyncIterator[Before]:
    """``before``, ended at the end."""
    here = before(cache, ours, policy)
    try:
        yield here
    finally:
        await here.fills.finish()
        for one in (here.ours, here.evil):
            await one.close()
        await here.fills.close()


async def pulled(here: Before) -> None:
    """The image is held, for one repository."""
    here.upstream.add_image(IMAGE, CONFIG, LAYER, repository=APP)
    await here.ours.resolve(APP, LATEST)
    for child in IMAGE.children:
        await read_all(await here.ours.open_blob(APP, child.digest))
    await here.fills.finish()


async def test_a_base_layer_of_one_registry_is_shared(tmp_path: Path) -> None:
    """Another repository of the same upstream whose manifest names it has it, and nobody is asked."""
    async with caching(tmp_path) as cache, standing(cache) as here:
        await pulled(here)
        here.upstream.names[BASE, LATEST] = IMAGE.digest
        await here.ours.resolve(BASE, LATEST)
        here.upstream.error = UpstreamFailed("down")
        asked = here.upstream.asked["open"]
        blob = await here.ours.fetch_blob(BASE, Digest.of(LAYER))
        assert (Kind.HIT, LAYER) == (blob.provenance.kind, await read_all(blob.value))
        assert asked == here.upstream.asked["open"]


@pytest.mark.parametrize("held", [True, False], ids=["held", "on its way"])
async def test_a_forged_manifest_opens_nothing(tmp_path: Path, held: bool) -> None:
    """A blob that one registry brought, or brings just now, is not another's for being named there: its own upstream
    has to have it. Once it has, the blob is not fetched again, and is served without it."""
    async with caching(tmp_path) as cache, standing(cache) as here:
        layer, gate = Digest.of(LAYER), asyncio.Event()
        if held:
            await pulled(here)
        else:
            here.upstream.add_blob(LAYER, Body(stop_at=100_000, gate=gate))
            reading = asyncio.create_task(here.ours.open_blob(APP, layer))
            await until(lambda: here.fills.find(layer) is not None)
        here.evils.add_image(IMAGE, repository=EVIL)
        await here.evil.resolve(EVIL, LATEST)
        with pytest.raises(BlobUnknown):
            await here.evil.open_blob(EVIL, layer)
        gate.set()
        if not held:
            await read_all(await reading)
            await here.fills.finish()
        here.evils.add_blob(LAYER)
        cache.clock.now += POLICY.negative_s
        assert LAYER == await read_all(await here.evil.open_blob(EVIL, layer))
        here.evils.error = UpstreamFailed("down")
        assert LAYER == await read_all(await here.evil.open_blob(EVIL, layer))
        assert 0 == here.evils.sent_bytes


@pytest.mark.parametrize("keep_gone", [True, False])
async def test_another_upstream_takes_nothing_away(tmp_path: Path, keep_gone: bool) -> None:
    """What it does not have is a 404, and stays as the first one said it; what is pinned cannot be pinned again."""
    policy = replace(POLICY, keep_gone=keep_gone)
    async with caching(tmp_path, policy) as cache:
        async with standing(cache) as here:
            await pulled(here)
            await here.ours.pin(APP, LATEST)
        async with standing(cache, "another", policy) as other:
            for _ in range(2):
                with pytest.raises(ManifestUnknown):
                    await other.ours.fetch_descriptor(APP, LATEST)
                cache.clock.now += POLICY.negative_s
            newer = other.upstream.add_image(image(b"[]"), repository=APP)
            assert newer.digest == (await other.ours.resolve(APP, LATEST)).digest
            with pytest.raises(ManifestUnknown, match="unpin it first"):
                await other.ours.pin(APP, LATEST)
        async with standing(cache) as here:
            here.upstream.error = UpstreamFailed("down")
            assert IMAGE.digest == (await here.ours.resolve(APP, LATEST)).digest
            assert IMAGE == await here.ours.manifest(APP, IMAGE.digest)


async def test_what_was_pushed_is_every_upstreams(tmp_path: Path) -> None:
    """What was pushed here in Local mode is served before any upstream, and stays so when one gives it too."""
    async with caching(tmp_path) as cache:
        for data in (CONFIG, LAYER):
            writer = await cache.store.begin_blob(APP)
            await writer.write([data])
            await writer.commit(Digest.of(data))
        await cache.store.put_manifest(APP, LATEST, IMAGE, "somebody")
        for name in ("ours", "another"):
            async with standing(cache, name) as here:
                here.upstream.error = UpstreamFailed("down")
                assert (await here.ours.fetch_descriptor(APP, LATEST)).provenance.kind is Kind.STALE
                assert LAYER == await read_all(await here.ours.open_blob(APP, Digest.of(LAYER)))
                assert await here.fills.store.link(APP, Digest.of(LAYER))

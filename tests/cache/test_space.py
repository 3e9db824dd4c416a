"""A cache with a budget: what is kept, what leaves for what, and that the disk holds no more than it may."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cache.scripted import APP, OTHER, Body, Cache, Clock, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.chunks import CHUNK_BYTES_MAX
from sluice.cache.space import SpaceSettings
from sluice.errors import ImageKept, UpstreamFailed
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.testing.content import image, index, push_blob

LAYER_BYTES = 200_000
ROOM = SpaceSettings(max_bytes=500_000, ttl_s=0)  # for two images of one layer
WIDE = SpaceSettings(max_bytes=0, ttl_s=1000.0)
LAYERS = [os.urandom(LAYER_BYTES) for _ in range(5)]
A, B, C, D = (Tag(name) for name in "abcd")


def add(cache: Cache, tag: Tag, *layers: bytes, repository: Repository = APP) -> Manifest:
    config = f'{{"of": "{repository}:{tag}"}}'.encode()
    return cache.upstream.add_image(image(config, *layers), config, *layers, tag=tag, repository=repository)


async def pull(cache: Cache, tag: Tag, repository: Repository = APP) -> list[Kind]:
    """Pull an image as a client does, a second after what was before; where its blobs came from."""
    cache.clock.now += 1
    digest = (await cache.pull.resolve(repository, tag)).digest
    kinds = []
    manifests = [await cache.pull.manifest(repository, digest)]
    for manifest in manifests:
        for child in manifest.children:
            if child.kind == "manifest":
                manifests.append(await cache.pull.manifest(repository, child.digest))
                continue
            fetched = await cache.pull.fetch_blob(repository, child.digest)
            assert child.digest == Digest.of(await read_all(fetched.value))
            kinds.append(fetched.provenance.kind)
    await cache.idle()
    return kinds


async def held(cache: Cache) -> list[str]:
    """The tags, or digests, of what is held."""
    return sorted(one.tags[0] if one.tags else one.digest for one in (await cache.space.holdings()).images)


async def test_the_least_recently_used_image_leaves(tmp_path: Path) -> None:
    """For a new image the one that was used longest ago leaves as a whole; its bytes come back at once, and pulling it
    again fetches it again."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        for tag, layer in zip((A, B, C), LAYERS, strict=False):
            add(cache, tag, layer)
        await pull(cache, A)
        await pull(cache, B)
        assert [Kind.HIT, Kind.HIT] == await pull(cache, A)
        assert [Kind.STARTED, Kind.STARTED] == await pull(cache, C)
        assert ["a", "c"] == await held(cache)
        assert cache.disk_bytes() == (await cache.space.status()).used_bytes <= ROOM.max_bytes
        assert [Kind.STARTED, Kind.STARTED] == await pull(cache, B)
        assert (["b", "c"], 2) == (await held(cache), (await cache.space.status()).evicted_images)


async def test_what_was_looked_at_while_it_left_is_no_reason_for_others_to_leave(tmp_path: Path) -> None:
    """Evicted while somebody else was looking for it, a layer's file stays for that moment; the next one who needs room
    gets it back, and no image leaves for it."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        for tag, layer in zip((A, B, C, D), LAYERS, strict=False):
            add(cache, tag, layer)
        await pull(cache, A)
        await pull(cache, B)
        (old,) = [one for one in (await cache.space.holdings()).images if one.tags == (A,)]
        with cache.store.leases.held(OTHER, Digest.of(LAYERS[0])):
            assert await cache.space.purge(old) > LAYER_BYTES
            assert (await cache.space.status()).condemned_bytes == LAYER_BYTES
        await pull(cache, D)
        assert (["b", "d"], 1) == (await held(cache), (await cache.space.status()).evicted_images)
        assert cache.disk_bytes() == (await cache.space.status()).held_bytes


async def test_what_has_just_been_entered_counts_once(tmp_path: Path) -> None:
    """Between its row and the end of its fill a blob is held and granted too: that is room for one, and no image leaves
    for the other. Where the row is another one's, both are there, and both count."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        grant = await cache.space.admit(LAYER_BYTES, Digest.of(LAYERS[0]))
        assert (await cache.space.status()).used_bytes == LAYER_BYTES
        await push_blob(cache.store, APP, LAYERS[0])
        assert (await cache.space.status()).used_bytes == 2 * LAYER_BYTES
        grant.entering = True
        assert (await cache.space.status()).used_bytes == LAYER_BYTES
        grant.release()
        assert (await cache.space.status()).used_bytes == LAYER_BYTES


async def test_a_hit_of_any_part_is_use(tmp_path: Path) -> None:
    """An image is used by whoever resolves it, reads its manifest, or reads a layer that is its alone."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        manifests = {tag: add(cache, tag, layer) for tag, layer in zip((A, B, C), LAYERS, strict=False)}
        references: list[Reference | None] = [A, manifests[A].digest, None]
        for reference in references:
            await pull(cache, A)
            await pull(cache, B)
            cache.clock.now += 1
            if reference is not None:
                await cache.pull.resolve(APP, reference)
            else:
                (await cache.pull.open_blob(APP, manifests[A].children[1].digest)).close()
            await pull(cache, C)
            assert ["a", "c"] == await held(cache)


async def test_a_shared_layer_stays(tmp_path: Path) -> None:
    """What another image needs stays when the first one leaves: in its repository, and as a file in any."""
    async with caching(tmp_path / "data", space=SpaceSettings(850_000, 0)) as cache:
        add(cache, A, LAYERS[0], LAYERS[4])
        add(cache, B, LAYERS[0], LAYERS[1])
        add(cache, C, LAYERS[0], repository=OTHER)
        add(cache, D, LAYERS[2], LAYERS[3])
        await pull(cache, A)
        await pull(cache, C, OTHER)
        await pull(cache, B)
        await pull(cache, D)
        assert ["b", "c", "d"] == await held(cache)
        (other,) = [one for one in (await cache.space.holdings()).images if one.repository == OTHER]
        assert await cache.space.purge(other) < 1000
        assert [Kind.HIT] * 3 == await pull(cache, B)


async def test_an_index_leaves_with_its_manifests(tmp_path: Path) -> None:
    """An index is one image with what it names; a manifest of it that has a tag of its own stays with its layers."""
    async with caching(tmp_path / "data", space=SpaceSettings(700_000, 0)) as cache:
        first, second = add(cache, A, LAYERS[0]), add(cache, B, LAYERS[1])
        cache.upstream.add_image(index(first, second), tag=C)
        await pull(cache, C)
        await pull(cache, B)
        assert ["b", "c"] == await held(cache)
        add(cache, D, LAYERS[2], LAYERS[3])
        await pull(cache, D)
        assert ["b", "d"] == await held(cache)
        assert [Kind.HIT] * 2 == await pull(cache, B)


async def test_a_pinned_tag_never_leaves(tmp_path: Path) -> None:
    """A pinned image stays however old it is, also after a restart; nothing leaves for what would not fit beside it; an
    unpinned one leaves."""
    clock = Clock()
    async with caching(tmp_path / "data", space=ROOM, clock=clock) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        await cache.pull.pin(APP, A)
    async with caching(tmp_path / "data", space=ROOM, clock=clock) as cache:
        add(cache, A, LAYERS[0])
        for tag, layer in zip((B, C), LAYERS[1:], strict=False):
            add(cache, tag, layer)
            await pull(cache, tag)
        assert ["a", "c"] == await held(cache)
        add(cache, D, LAYERS[2] + LAYERS[3])
        assert Kind.BYPASS in await pull(cache, D)
        assert {"a", "c"} <= set(await held(cache))
        await cache.pull.unpin(APP, A)
        await pull(cache, D)
        assert ["d"] == await held(cache)


async def test_pinning_fetches_what_is_not_held(tmp_path: Path) -> None:
    """A tag can be pinned before anybody has pulled it."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        manifest = add(cache, A, LAYERS[0])
        assert manifest.digest == (await cache.pull.pin(APP, A)).digest
        assert 1 == (await cache.space.status()).pinned


async def test_the_protected_set_never_leaves(tmp_path: Path) -> None:
    """What a controller has named, by tag or digest, stays, also after a restart, until it names something else."""
    clock = Clock()
    async with caching(tmp_path / "data", space=ROOM, clock=clock) as cache:
        manifest = add(cache, A, LAYERS[0])
        await pull(cache, A)
        await cache.space.protect([f"{APP}:{A}"])
    async with caching(tmp_path / "data", space=ROOM, clock=clock) as cache:
        for tag, layer in zip((A, B, C), LAYERS, strict=False):
            add(cache, tag, layer)
        for reference in (f"{APP}:{A}", f"{APP}@{manifest.digest}", str(manifest.digest)):
            await pull(cache, B)
            await pull(cache, C)
            assert ["a", "c"] == await held(cache)
            await cache.space.protect([reference])
        await cache.space.protect([])
        await pull(cache, B)
        assert ["b", "c"] == await held(cache)


async def test_what_is_read_or_filled_never_leaves(tmp_path: Path) -> None:
    """An image with an open reader, or with a fill that runs, stays; what would not fit beside it is passed through."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        gate = asyncio.Event()
        manifest = add(cache, A, LAYERS[0])
        add(cache, B, LAYERS[1])
        cache.upstream.add_blob(LAYERS[1], Body(stop_at=100_000, gate=gate))
        add(cache, C, LAYERS[2])
        await pull(cache, A)
        reader = await cache.pull.open_blob(APP, manifest.children[1].digest)
        await cache.pull.manifest(APP, (await cache.pull.resolve(APP, B)).digest)
        filling = await cache.pull.open_blob(APP, Digest.of(LAYERS[1]))
        fetched = await cache.pull.fetch_blob(APP, add(cache, C, LAYERS[2]).children[1].digest)
        assert Kind.BYPASS is fetched.provenance.kind
        assert LAYERS[2] == await read_all(fetched.value)
        assert ["a", "b"] == await held(cache)
        for one in (await cache.space.holdings()).images:
            with pytest.raises(ImageKept):
                await cache.space.purge(one)
        gate.set()
        assert LAYERS[1] == await read_all(filling)
        assert LAYERS[0] == await read_all(reader)
        await pull(cache, C)
        assert "c" in await held(cache)


@pytest.mark.parametrize("sized", [True, False])
async def test_what_is_larger_than_the_budget_passes_through(tmp_path: Path, sized: bool) -> None:
    """A blob larger than the whole budget is served and not kept, and with a known size nothing leaves for it. Not even
    for a moment is the budget passed by more than a chunk."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        seen: list[int] = []
        cache.upstream.watch = lambda: seen.append(cache.disk_bytes())
        data = os.urandom(3 << 20)
        digest = cache.upstream.add_blob(data, Body(sized=sized))
        assert data == await read_all(await cache.pull.open_blob(APP, digest))
        await cache.idle()
        assert max(seen) <= ROOM.max_bytes + CHUNK_BYTES_MAX
        assert digest.hex not in cache.contents()
        assert not sized or ["a"] == await held(cache)


async def test_a_blob_of_unknown_size_is_let_in_as_it_grows(tmp_path: Path) -> None:
    """Without a size a fill asks for room as it goes, and others leave for it."""
    async with caching(tmp_path / "data", space=SpaceSettings(9 << 20, 0)) as cache:
        for tag in (A, B):
            add(cache, tag, os.urandom(2 << 20))
            await pull(cache, tag)
        data = os.urandom(6 << 20)
        digest = cache.upstream.add_blob(data, Body(sized=False))
        assert data == await read_all(await cache.pull.open_blob(APP, digest))
        await cache.idle()
        assert ["b", str(digest)] == await held(cache)
        assert cache.disk_bytes() <= 9 << 20


async def test_what_was_pushed_here_never_leaves(tmp_path: Path) -> None:
    """Images that a client pushed while this was a registry are no cache's to evict."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        config = b"{}"
        for data in (config, LAYERS[0]):
            await push_blob(cache.store, APP, data)
        await cache.store.put_manifest(APP, A, image(config, LAYERS[0]), "somebody")
        for tag, layer in zip((B, C), LAYERS[1:], strict=False):
            add(cache, tag, layer)
            await pull(cache, tag)
        assert ["a", "c"] == await held(cache)


async def test_blobs_without_a_manifest_leave_too(tmp_path: Path) -> None:
    """A blob that no manifest names is an image of its own, with its own last use."""
    async with caching(tmp_path / "data", space=ROOM) as cache:
        digests = [cache.upstream.add_blob(layer) for layer in LAYERS[:3]]
        for digest in digests:
            cache.clock.now += 1
            await read_all(await cache.pull.open_blob(APP, digest))
            await cache.idle()
        assert sorted(map(str, digests[1:])) == await held(cache)


async def test_purging_needs_no_age(tmp_path: Path) -> None:
    """A purged image leaves at once, unless it is pinned; its name is in the refusal."""
    async with caching(tmp_path / "data", space=WIDE) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        await cache.pull.pin(APP, A)
        with pytest.raises(ImageKept, match="team/app:a stays, it is pinned: unpin it first"):
            await cache.space.purge((await cache.space.holdings()).images[0])
        await cache.pull.unpin(APP, A)
        before = cache.disk_bytes()
        assert before == await cache.space.purge((await cache.space.holdings()).images[0])
        assert (0, set()) == (cache.disk_bytes(), cache.contents())


async def test_evicted_images_are_asked_for_again(tmp_path: Path) -> None:
    """Once evicted, an image that the upstream cannot give just now is an error and no other image."""
    async with caching(tmp_path / "data", space=WIDE) as cache:
        add(cache, A, LAYERS[0])
        await pull(cache, A)
        await cache.space.purge((await cache.space.holdings()).images[0])
        cache.upstream.error = UpstreamFailed("down")
        with pytest.raises(UpstreamFailed):
            await cache.pull.resolve(APP, A)
        cache.upstream.error = None
        assert [Kind.STARTED, Kind.STARTED] == await pull(cache, A)
        await until(lambda: len(cache.store.leases) == 0)


async def test_a_shared_layer_in_use_keeps_one_image(tmp_path: Path) -> None:
    """Of images that share a layer which is read, the one used last stays, and the others may leave."""
    async with caching(tmp_path / "data", space=SpaceSettings(650_000, 0)) as cache:
        add(cache, A, LAYERS[0], LAYERS[1])
        add(cache, B, LAYERS[0], LAYERS[2])
        add(cache, C, LAYERS[3])
        await pull(cache, A)
        await pull(cache, B)
        reader = await cache.pull.open_blob(APP, Digest.of(LAYERS[0]))
        await pull(cache, C)
        assert ["b", "c"] == await held(cache)
        add(cache, D, LAYERS[4], LAYERS[1])
        await pull(cache, D)
        assert "b" in await held(cache)
        assert LAYERS[0] == await read_all(reader)

"""Tags, manifests and listings through a cache: fresh, stale, gone, never "no such thing" for "could not ask"."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, LATEST, OTHER, POLICY, Cache, caching, read_all, until
from sluice.cache.answers import Fetched, Kind
from sluice.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    SluiceError,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLoop,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTlsFailed,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import OCI_MANIFEST
from sluice.oci.reference import Tag
from sluice.store.scrub import check
from sluice.testing.content import image, index

CONFIG, LAYER = b'{"architecture":"amd64"}', os.urandom(200_000)
IMAGE = image(CONFIG, LAYER)
NEWER = image(CONFIG, LAYER, annotations={"newer": "yes"})
DAY_S = 86_400.0
TROUBLES = [
    UpstreamUnreachable("name resolution failed"),
    UpstreamTlsFailed("unknown authority"),
    UpstreamTimeout("no answer"),
    UpstreamFailed("503"),
    UpstreamUnauthorized("401"),
    UpstreamRateLimited("429", retry_after_s=30),
    UpstreamInvalid("a page"),
    UpstreamLoop("ourselves"),
]


async def tag(cache: Cache) -> Fetched[Descriptor]:
    return await cache.pull.fetch_descriptor(APP, LATEST)


async def settled(cache: Cache) -> None:
    """Until nothing is asked in the background."""
    await until(lambda: len(cache.pull._flights) == 0)


async def known(cache: Cache, age_s: float = 0.0) -> None:
    """The image was pulled by tag ``age_s`` ago."""
    cache.upstream.add_image(IMAGE, CONFIG, LAYER)
    assert (await tag(cache)).value.digest == IMAGE.digest
    cache.clock.now += age_s
    cache.upstream.asked.clear()


def story(fetched: Fetched[Descriptor]) -> tuple[Digest, Kind, str | None]:
    return fetched.value.digest, fetched.provenance.kind, fetched.provenance.reason


async def test_an_image_is_pulled_once(tmp_path: Path) -> None:
    """Tag, manifest and blobs come from the upstream once, and then from here, upstream or not, until the tag is no
    longer fresh."""
    async with caching(tmp_path) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        for kind in (Kind.UPSTREAM, Kind.HIT):
            fetched = await tag(cache)
            assert (IMAGE.digest, kind, None) == story(fetched)
            assert fetched.fresh_s == POLICY.tag_fresh_s
            found = await cache.pull.fetch_manifest(APP, IMAGE.digest)
            assert (IMAGE, Kind.HIT, math.inf) == (found.value, found.provenance.kind, found.fresh_s)
            for child in IMAGE.children:
                await read_all(await cache.pull.open_blob(APP, child.digest))
            await cache.idle()
            cache.upstream.error = UpstreamFailed("down")
        assert cache.upstream.asked == {"resolve": 1, "manifest": 1, "open": 2}
        by_digest = await cache.pull.fetch_descriptor(APP, IMAGE.digest)
        assert (Kind.HIT, math.inf) == (by_digest.provenance.kind, by_digest.fresh_s)


async def test_a_manifest_by_digest_is_kept(tmp_path: Path) -> None:
    """A manifest that is asked for by digest comes once, for many who ask at once; an index's other platforms need not
    be here, nor need the blobs."""
    async with caching(tmp_path) as cache:
        both = cache.upstream.add_image(index(IMAGE, NEWER))
        cache.upstream.gate = asyncio.Event()
        asking = [asyncio.create_task(cache.pull.fetch_manifest(APP, both.digest)) for _ in range(9)]
        await until(lambda: cache.upstream.asked["manifest"])
        await asyncio.sleep(0.02)
        cache.upstream.gate.set()
        found = await asyncio.gather(*asking)
        assert [both] * 9 == [one.value for one in found]
        assert {Kind.UPSTREAM: 1, Kind.JOINED: 8} == Counter(one.provenance.kind for one in found)
        cache.upstream.error = UpstreamFailed("down")
        assert both == await cache.pull.manifest(APP, both.digest)
        assert cache.upstream.asked["manifest"] == 1
        with pytest.raises(UpstreamFailed):
            await cache.pull.manifest(OTHER, both.digest)


async def test_a_wrong_manifest_is_refused(tmp_path: Path) -> None:
    """A manifest whose digest is not the one that was asked for reaches nobody and is not kept."""
    async with caching(tmp_path) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        cache.upstream.manifests[IMAGE.digest] = replace(NEWER, digest=IMAGE.digest)
        for reference in (LATEST, IMAGE.digest):
            with pytest.raises(UpstreamInvalid):
                await cache.pull.resolve(APP, reference)
        assert cache.contents() == set()
        assert cache.counters.invalid == 2


@pytest.mark.parametrize("error", TROUBLES, ids=lambda error: error.reason)
async def test_known_tags_outlive_every_trouble(tmp_path: Path, error: UpstreamError) -> None:
    """A known tag is served stale with the trouble's name, whatever that is and however old the tag; what is unknown
    gets the upstream's error and never a 404. Once the upstream is back, so is freshness."""
    async with caching(tmp_path) as cache:
        await known(cache, 30 * DAY_S)
        cache.upstream.error = error
        for _ in range(3):
            assert (IMAGE.digest, Kind.STALE, error.reason) == story(await tag(cache))
        assert cache.upstream.asked["resolve"] == 1
        assert cache.counters.stale == {error.reason: 3}
        for reference in (Tag("unknown"), Digest.of(b"unknown")):
            with pytest.raises(type(error)) as caught:
                await cache.pull.resolve(APP, reference)
            assert caught.value.status in {502, 503, 504, 508}
        with pytest.raises(type(error)):
            await cache.pull.open_blob(APP, Digest.of(b"unknown"))
        with pytest.raises(type(error)):
            await cache.pull.manifest(OTHER, IMAGE.digest)
        cache.upstream.error = None
        cache.clock.now += POLICY.negative_s
        assert (IMAGE.digest, Kind.UPSTREAM, None) == story(await tag(cache))


async def test_an_expired_tag_is_served_and_looked_at(tmp_path: Path) -> None:
    """Past its freshness a tag is served at once and looked at with one HEAD, for all who pull it meanwhile; when it
    has moved, the next pull has the new image."""
    async with caching(tmp_path) as cache:
        await known(cache, 3600)
        cache.upstream.gate = asyncio.Event()
        looked = "being looked at again"
        for _ in range(3):
            assert (IMAGE.digest, Kind.HIT, looked) == story(await tag(cache))
        cache.upstream.gate.set()
        await settled(cache)
        assert (IMAGE.digest, Kind.HIT, None) == story(await tag(cache))
        assert cache.upstream.asked == {"resolve": 1}
        cache.upstream.add_image(NEWER)
        cache.clock.now += 3600
        assert (IMAGE.digest, Kind.HIT, looked) == story(await tag(cache))
        await settled(cache)
        assert (NEWER.digest, Kind.HIT, None) == story(await tag(cache))
        assert ["upstream", "upstream"] == [event.actor for event in await cache.store.tag_history(APP, LATEST)]
        assert cache.counters.revalidations == 2


async def test_trouble_in_the_background_shows(tmp_path: Path) -> None:
    """When looking at an expired tag has failed, the tag is served stale and says so, and the upstream is left alone
    for ``negative_s``; then it is looked at again."""
    async with caching(tmp_path) as cache:
        await known(cache, 3600)
        cache.upstream.error = UpstreamUnreachable("down")
        await tag(cache)
        await settled(cache)
        for _ in range(3):
            assert (IMAGE.digest, Kind.STALE, "unreachable") == story(await tag(cache))
        assert cache.upstream.asked["resolve"] == 1
        cache.clock.now += POLICY.negative_s
        cache.upstream.error = None
        assert (IMAGE.digest, Kind.STALE, "unreachable") == story(await tag(cache))
        await settled(cache)
        assert (IMAGE.digest, Kind.HIT, None) == story(await tag(cache))


async def test_first_means_first(tmp_path: Path) -> None:
    """With ``revalidate="first"`` a moved tag is seen by the very next pull past its freshness."""
    async with caching(tmp_path, replace(POLICY, revalidate="first")) as cache:
        await known(cache, 59)
        cache.upstream.add_image(NEWER)
        assert (IMAGE.digest, Kind.HIT, None) == story(await tag(cache))
        cache.clock.now += 1
        assert (NEWER.digest, Kind.UPSTREAM, None) == story(await tag(cache))


async def test_a_stale_answer_waits_no_longer_than_a_head(tmp_path: Path) -> None:
    """An upstream that does not answer costs a pull of a known tag ``head_deadline_s`` at most."""
    async with caching(tmp_path, replace(POLICY, revalidate="first", head_deadline_s=0.05)) as cache:
        await known(cache, 3600)
        cache.upstream.gate = asyncio.Event()
        assert (IMAGE.digest, Kind.STALE, "timeout") == story(await tag(cache))
        cache.upstream.gate.set()


async def test_a_tag_that_is_gone_is_kept(tmp_path: Path) -> None:
    """By default a tag that the upstream has deleted is served on, marked as gone, after a restart too, until it comes
    back."""
    async with caching(tmp_path) as cache:
        await known(cache, 30 * DAY_S)
        digest = cache.upstream.names.pop((APP, LATEST))
        for _ in range(3):
            assert (IMAGE.digest, Kind.STALE, "gone") == story(await tag(cache))
            await cache.restart()
        assert cache.upstream.asked == {"resolve": 1}
        cache.upstream.names[APP, LATEST] = digest
        cache.clock.now += POLICY.tag_stale_max_s
        assert (IMAGE.digest, Kind.UPSTREAM, None) == story(await tag(cache))


async def test_a_tag_that_is_gone_is_dropped_where_set(tmp_path: Path) -> None:
    """With ``keep_gone`` off a deleted tag is a 404 as soon as that is known; a pinned one stays, and so does what the
    tag named, by its digest."""
    async with caching(tmp_path, replace(POLICY, keep_gone=False)) as cache:
        await known(cache)
        await cache.store.pin_tag(APP, LATEST, True)
        cache.clock.now += 30 * DAY_S
        cache.upstream.names.clear()
        assert (IMAGE.digest, Kind.HIT, None) == story(await tag(cache))
        assert cache.upstream.asked["resolve"] == 0
        await cache.store.pin_tag(APP, LATEST, False)
        for _ in range(3):
            with pytest.raises(ManifestUnknown):
                await tag(cache)
        assert cache.upstream.asked["resolve"] == 1
        assert IMAGE == await cache.pull.manifest(APP, IMAGE.digest)


async def test_a_pinned_tag_never_moves(tmp_path: Path) -> None:
    """A pinned tag is served as it is, however old, without asking; unpinned, it follows the upstream again."""
    async with caching(tmp_path) as cache:
        await known(cache)
        await cache.store.pin_tag(APP, LATEST, True)
        cache.upstream.add_image(NEWER)
        cache.clock.now += 30 * DAY_S
        pinned = await tag(cache)
        assert ((IMAGE.digest, Kind.HIT, None), math.inf) == (story(pinned), pinned.fresh_s)
        await cache.store.confirm_tag(APP, LATEST, IMAGE.digest, "somebody")
        assert cache.upstream.asked["resolve"] == 0
        await cache.store.pin_tag(APP, LATEST, False)
        assert (NEWER.digest, Kind.UPSTREAM, None) == story(await tag(cache))


async def test_nothing_is_asked_again_within_seconds(tmp_path: Path) -> None:
    """That there is no such tag or manifest is remembered for ``negative_s``, in bounded memory, and then asked
    again."""
    async with caching(tmp_path) as cache:
        for reference in (LATEST, IMAGE.digest):
            for _ in range(3):
                with pytest.raises(ManifestUnknown):
                    await cache.pull.resolve(APP, reference)
        assert cache.upstream.asked == {"resolve": 1, "manifest": 1}
        assert cache.counters.absent == 4
        cache.clock.now += POLICY.negative_s
        cache.upstream.add_image(IMAGE)
        assert (IMAGE.digest, Kind.UPSTREAM, None) == story(await tag(cache))


@pytest.mark.parametrize("ask", ["open_blob", "stat_blob"])
async def test_a_digest_that_is_no_manifest_may_be_a_blob(tmp_path: Path, ask: str) -> None:
    """Who asks for a layer as a manifest, or for a manifest as a blob, is told that there is none; whoever then asks
    for it as what it is gets it."""
    async with caching(tmp_path) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        layer = Digest.of(LAYER)
        with pytest.raises(ManifestUnknown):
            await cache.pull.manifest(APP, layer)
        with pytest.raises(BlobUnknown):
            await (cache.pull.stat_blob if ask == "stat_blob" else cache.pull.open_blob)(APP, IMAGE.digest)
        assert IMAGE == await cache.pull.manifest(APP, IMAGE.digest)
        assert len(LAYER) == (await cache.pull.stat_blob(APP, layer)).value
        assert LAYER == await read_all(await cache.pull.open_blob(APP, layer))


async def test_what_was_pushed_here_is_served_too(tmp_path: Path) -> None:
    """A tag that was pushed when this was a registry is asked about first, and served where the upstream cannot be
    asked or has none."""
    async with caching(tmp_path) as cache:
        await cache.store.put_manifest(APP, LATEST, index(), "somebody")
        cache.upstream.error = UpstreamFailed("down")
        assert (index().digest, Kind.STALE, "failed") == story(await tag(cache))
        cache.upstream.error = None
        cache.clock.now += POLICY.negative_s
        assert (index().digest, Kind.STALE, "gone") == story(await tag(cache))
        cache.upstream.add_image(IMAGE)
        cache.clock.now += POLICY.tag_stale_max_s
        assert (IMAGE.digest, Kind.UPSTREAM, None) == story(await tag(cache))


@pytest.mark.parametrize("harm", ["vanished", "flipped"])
async def test_a_damaged_manifest_is_fetched_again(tmp_path: Path, harm: str) -> None:
    """A held manifest whose bytes are gone or wrong comes from the upstream again, and is then whole here."""
    async with caching(tmp_path) as cache:
        await known(cache)
        path = cache.store.paths.content(IMAGE.digest)
        path.unlink() if harm == "vanished" else path.write_bytes(b"!" + IMAGE.raw[1:])
        assert IMAGE == await cache.pull.manifest(APP, IMAGE.digest)
        assert IMAGE == await cache.store.manifest(APP, IMAGE.digest)
        assert cache.upstream.asked == {"manifest": 1}


async def test_lists_are_remembered_and_served_stale(tmp_path: Path) -> None:
    """Tag lists and referrers come from memory while fresh, and when the upstream cannot be asked they are the last
    ones; what is not known is the upstream's error."""
    async with caching(tmp_path) as cache:
        await known(cache)
        referrer = Referrer(Descriptor(OCI_MANIFEST, NEWER.digest, 7), "application/x.signature")
        cache.upstream.referring = [referrer]

        async def both() -> list[tuple[object, Kind, str | None]]:
            lists = await cache.pull.fetch_tags(APP, 10, None), await cache.pull.fetch_referrers(APP, IMAGE.digest)
            return [(list(one.value), one.provenance.kind, one.provenance.reason) for one in lists]

        for kind in (Kind.UPSTREAM, Kind.HIT):
            assert [([LATEST], kind, None), ([referrer], kind, None)] == await both()
        assert cache.upstream.asked == {"tags": 1, "referrers": 1}
        cache.clock.now += POLICY.tag_fresh_s
        cache.upstream.error = UpstreamTimeout("silent")
        assert [([LATEST], Kind.STALE, "timeout"), ([referrer], Kind.STALE, "timeout")] == await both()
        with pytest.raises(UpstreamTimeout):
            await cache.pull.tags(OTHER, 10, None)
        cache.upstream.error = None
        with pytest.raises(NameUnknown):
            await cache.pull.tags(OTHER, 10, None)


@pytest.mark.parametrize(("prefetch", "fills"), [(True, 2), (False, 0)])
async def test_layers_may_start_before_anybody_asks(tmp_path: Path, prefetch: bool, fills: int) -> None:
    """With prefetch an image's config and layers begin to come with its manifest; an index brings nothing by itself,
    and what is held or already coming is not begun again."""
    async with caching(tmp_path, replace(POLICY, prefetch=prefetch)) as cache:
        cache.upstream.add_image(index(IMAGE), tag=Tag("all"))
        await cache.pull.resolve(APP, Tag("all"))
        assert cache.counters.fills_begun == 0
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        cache.upstream.add_image(NEWER, tag=Tag("newer"))
        await cache.pull.resolve(APP, LATEST)
        await cache.idle()
        await cache.pull.resolve(APP, Tag("newer"))
        await cache.idle()
        assert fills == cache.counters.fills_prefetched == cache.upstream.asked["open"]


async def test_a_check_finds_nothing_wrong_with_a_cache(tmp_path: Path) -> None:
    """Manifests without their blobs are as they should be in a cache: a check of the store reports none incomplete."""
    async with caching(tmp_path) as cache:
        await known(cache)
        report = await asyncio.to_thread(check, cache.store)
        assert report.clean, report


def test_every_trouble_is_tried() -> None:
    """The list of troubles has every kind of ``UpstreamError``."""
    assert {type(error) for error in TROUBLES} == set(UpstreamError.__subclasses__())
    assert issubclass(UpstreamError, SluiceError)
    assert isinstance(IMAGE, Manifest)

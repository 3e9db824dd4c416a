"""Fills: one upstream call for everybody, at any offset, and never a complete blob that is wrong."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, POLICY, Body, Cache, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.fill import WITHHELD_BYTES
from sluice.errors import (
    BlobUnknown,
    StoreDamaged,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnauthorized,
)
from sluice.oci.digest import Digest

DATA = os.urandom(3_000_000)
SMALL = os.urandom(50_000)
UNSIZED = Body(sized=False)


async def kept(cache: Cache, digest: Digest) -> bytes:
    """The blob as the local store has it."""
    await cache.idle()
    return await read_all(await cache.store.open_blob(APP, digest))


async def test_many_readers_share_one_call(tmp_path: Path) -> None:
    """A hundred readers of any speed and from any offset, who come at once or later, are served by one upstream call;
    afterwards the blob is held, and no call is made for it."""
    async with caching(tmp_path) as cache:
        gate = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(stop_at=1_000_000, gate=gate))

        async def read(number: int) -> bytes:
            offset = (number % 4) * 700_000
            reader = await cache.pull.open_blob(APP, digest, offset)
            return await read_all(reader, (1 + number % 7) * 10_000, offset)

        early = [asyncio.create_task(read(number)) for number in range(60)]
        await until(lambda: cache.counters.answers["joined"] == 59)
        late = [asyncio.create_task(read(number)) for number in range(40)]
        gate.set()
        for readers in (early, late):
            assert [DATA[(number % 4) * 700_000 :] for number in range(len(readers))] == await asyncio.gather(*readers)
        assert await kept(cache, digest) == DATA
        fetched = await cache.pull.fetch_blob(APP, digest)
        assert await read_all(fetched.value) == DATA
        assert fetched.provenance.kind is Kind.HIT
        assert cache.upstream.asked["open"] == 1
        assert cache.upstream.sent_bytes == len(DATA) == cache.counters.upstream_bytes


async def test_a_reader_is_served_before_the_fill_ends(tmp_path: Path) -> None:
    """Head and bytes come as the upstream sends them; a reader that leaves or pauses holds nobody up."""
    async with caching(tmp_path) as cache:
        gate = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(stop_at=1_000_000, gate=gate))
        fetched = await cache.pull.fetch_blob(APP, digest)
        paused = await cache.pull.open_blob(APP, digest)
        assert (Kind.STARTED, len(DATA)) == (fetched.provenance.kind, fetched.value.size)
        assert await fetched.value.read(0, 400_000) == DATA[:400_000]
        fetched.value.close()
        gate.set()
        assert await kept(cache, digest) == DATA
        assert await read_all(paused) == DATA


async def test_a_fill_outlives_its_readers(tmp_path: Path) -> None:
    """When every reader has left, cancelled at whatever it waited for, the blob still arrives, by the same call."""
    async with caching(tmp_path) as cache:
        head, gate = asyncio.Event(), asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(head=head, stop_at=500_000, gate=gate))
        waiting = [asyncio.create_task(cache.pull.open_blob(APP, digest)) for _ in range(5)]
        await until(lambda: cache.upstream.offsets)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        head.set()
        reader = await cache.pull.open_blob(APP, digest)
        reading = asyncio.create_task(reader.read(0, 2_000_000))
        await until(lambda: cache.counters.upstream_bytes > 100_000)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        reader.close()
        gate.set()
        assert await kept(cache, digest) == DATA
        assert cache.upstream.asked["open"] == 1


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("data", [DATA, SMALL, os.urandom(WITHHELD_BYTES), b"x", b""], ids=len)
async def test_any_size_known_or_not(tmp_path: Path, data: bytes, sized: bool) -> None:
    """A blob of any size arrives, whether the upstream tells the size or not, also the empty one."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(data, Body(sized=sized))
        assert await read_all(await cache.pull.open_blob(APP, digest)) == data
        assert await kept(cache, digest) == data


async def test_an_unknown_size_is_unknown(tmp_path: Path) -> None:
    """Readers of a large blob whose size the upstream does not tell are told that it is unknown, and see its end."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(DATA, UNSIZED)
        reader = await cache.pull.open_blob(APP, digest)
        assert reader.size is None
        assert await reader.read(len(DATA) - 10, 100) == DATA[-10:]
        assert await reader.read(len(DATA), 100) == b""
        reader.close()


@pytest.mark.parametrize("data", [DATA, SMALL], ids=["large", "small"])
@pytest.mark.parametrize(
    "lie",
    [Body(flip_at=0), Body(flip_at=40_000), Body(flip_at=-1), Body(sized=False, end_at=40_000), Body(end_at=-1)],
    ids=["first byte", "middle", "last byte", "short, unsized", "short"],
)
async def test_a_wrong_blob_completes_no_reader(tmp_path: Path, data: bytes, lie: Body) -> None:
    """Wrong or missing bytes end every reader with an error, short of the end; nothing is kept, and a small blob is
    not even begun. The liar is left alone for a while, and then asked afresh."""
    flip = None if lie.flip_at is None else lie.flip_at % len(data)
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(data, replace(lie, flip_at=flip))
        got = await asyncio.gather(*(pull_partly(cache, digest) for _ in range(10)))
        assert {type(error) for _, error in got} <= {UpstreamInvalid, UpstreamFailed}
        assert all(len(part) <= max(0, len(data) - WITHHELD_BYTES) for part, _ in got)
        assert all(part == b"" for part, _ in got) or data is DATA
        await cache.idle()
        assert (set(), []) == (cache.contents(), cache.uploads())
        cache.upstream.scripts[digest] = [Body()]
        asked = cache.upstream.asked["open"]
        if lie.end_at != -1:  # that is a broken body, which anybody may have
            with pytest.raises(UpstreamInvalid):
                await cache.pull.open_blob(APP, digest)
            assert asked == cache.upstream.asked["open"]
        cache.clock.now += POLICY.negative_s
        assert await read_all(await cache.pull.open_blob(APP, digest)) == data


async def pull_partly(cache: Cache, digest: Digest) -> tuple[bytes, Exception | None]:
    """What a client gets before the error that ends it, if one does."""
    got = b""
    try:
        reader = await cache.pull.open_blob(APP, digest)
    except (UpstreamInvalid, UpstreamFailed) as error:
        return got, error
    try:
        while reader.size is None or len(got) < reader.size:
            want = 10_000 if reader.size is None else min(10_000, reader.size - len(got))
            more = await reader.read(len(got), want)
            got += more
            if not more:
                break
    except (UpstreamInvalid, UpstreamFailed) as error:
        return got, error
    finally:
        reader.close()
    return got, None


@pytest.mark.parametrize("sized", [True, False])
async def test_a_break_is_resumed_where_it_was(tmp_path: Path, sized: bool) -> None:
    """After each break the upstream is asked for the rest, not for the whole, and the reader notices nothing."""
    async with caching(tmp_path) as cache:
        cuts = [Body(cut_at=at, sized=sized) for at in (200_000, 900_000, 2_000_000)]
        digest = cache.upstream.add_blob(DATA, *cuts, Body(sized=sized))
        assert await read_all(await cache.pull.open_blob(APP, digest)) == DATA
        assert cache.counters.resumes == 3
        assert sorted(cache.upstream.offsets) == cache.upstream.offsets
        assert cache.upstream.sent_bytes == len(DATA)


async def test_a_mirror_goes_on_where_the_upstream_broke_off(tmp_path: Path) -> None:
    """A mirror is asked for the rest; that it refuses, or has no such blob, ends nothing; nor is a mirror with another
    size believed."""
    async with caching(tmp_path) as cache:
        refusing = Body(refuse=UpstreamUnauthorized("the token has expired"))
        digest = cache.upstream.add_blob(DATA, Body(cut_at=500_000), refusing)
        cache.mirror.error = None
        cache.mirror.add_blob(DATA)
        assert await read_all(await cache.pull.open_blob(APP, digest)) == DATA
        assert (1, 1) == (cache.upstream.asked["open"], cache.mirror.asked["open"])
        other = cache.upstream.add_blob(SMALL * 10, Body(cut_at=200_000), Body())
        cache.mirror.blobs[other], cache.mirror.scripts[other] = DATA, [Body()]
        assert await read_all(await cache.pull.open_blob(APP, other)) == SMALL * 10
        third = cache.upstream.add_blob(SMALL * 5, Body(cut_at=200_000), Body())
        assert await read_all(await cache.pull.open_blob(APP, third)) == SMALL * 5


async def test_an_upstream_that_stays_away_ends_the_fill(tmp_path: Path) -> None:
    """After ``fill_tries`` attempts without a byte the readers get the error and nothing is left; each byte renews the
    patience; the next request starts afresh."""
    async with caching(tmp_path) as cache:
        steps = [Body(cut_at=at) for at in range(100_000, 1_000_000, 100_000)]
        digest = cache.upstream.add_blob(DATA, *steps, Body(refuse=UpstreamFailed("503")))
        reader = await cache.pull.open_blob(APP, digest)
        with pytest.raises(UpstreamFailed):
            await read_all(reader)
        await cache.idle()
        assert (set(), []) == (cache.contents(), cache.uploads())
        assert len(steps) < cache.upstream.asked["open"] <= len(steps) + POLICY.fill_tries
        cache.upstream.scripts[digest] = [Body()]
        assert await read_all(await cache.pull.open_blob(APP, digest)) == DATA


async def test_a_dead_upstream_is_told_at_once(tmp_path: Path) -> None:
    """Before any head came, each source is asked once and the upstream's own error is told; a mirror's "there is no
    such blob" is not believed, the upstream's is, and is remembered."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(DATA, Body(refuse=UpstreamTimeout("it does not answer")))
        cache.mirror.error = None
        with pytest.raises(UpstreamTimeout, match="does not answer"):
            await cache.pull.open_blob(APP, digest)
        assert (1, 1) == (cache.upstream.asked["open"], cache.mirror.asked["open"])
        absent = Digest.of(b"absent")
        for _ in range(3):
            with pytest.raises(BlobUnknown):
                await cache.pull.open_blob(APP, absent)
        assert (2, 1) == (cache.upstream.asked["open"], cache.mirror.asked["open"])
        assert cache.counters.absent == 2
        cache.clock.now += POLICY.negative_s
        cache.upstream.add_blob(b"absent")
        assert await read_all(await cache.pull.open_blob(APP, absent)) == b"absent"


async def test_a_head_that_does_not_come_is_a_504(tmp_path: Path) -> None:
    """A reader waits for the head no longer than its deadline and is told so; the fill goes on, and the next one has
    it."""
    async with caching(tmp_path, replace(POLICY, head_deadline_s=0.05)) as cache:
        head = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(head=head))
        with pytest.raises(UpstreamTimeout, match=r"0\.05 s") as caught:
            await cache.pull.open_blob(APP, digest)
        assert caught.value.status == 504
        head.set()
        assert await kept(cache, digest) == DATA
        assert cache.upstream.asked["open"] == 1


async def test_a_small_blob_is_verified_before_its_head(tmp_path: Path) -> None:
    """Nothing is told of a small blob until it is verified; of a large one the head comes with its first byte."""
    async with caching(tmp_path) as cache:
        gate = asyncio.Event()
        small = cache.upstream.add_blob(SMALL, Body(stop_at=20_000, gate=gate))
        opening = asyncio.create_task(cache.pull.open_blob(APP, small))
        await until(lambda: cache.counters.upstream_bytes)
        await asyncio.sleep(0.05)
        assert not opening.done()
        gate.set()
        assert await read_all(await opening) == SMALL


async def test_the_last_chunk_waits_for_the_digest(tmp_path: Path) -> None:
    """Of bytes that turn out to be wrong, readers have had all but the last ``WITHHELD_BYTES``, of a known size or
    not."""
    async with caching(tmp_path) as cache:
        for sized in (True, False):
            data = os.urandom(len(DATA))
            digest = cache.upstream.add_blob(data, Body(flip_at=len(data) - 1, sized=sized))
            reader = await cache.pull.open_blob(APP, digest)
            shown = len(data) - WITHHELD_BYTES
            assert await reader.read(0, shown) == data[:shown]
            with pytest.raises(UpstreamInvalid):
                await reader.read(shown, 1)
            reader.close()


async def test_readers_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    """With all bytes verified but not yet durable, readers have them all; held is the blob only after that."""
    async with caching(tmp_path) as cache:
        for body in (Body(), UNSIZED):
            data = os.urandom(len(DATA))
            digest = cache.upstream.add_blob(data, body)
            with cache.store.content_lock(digest):  # the commit waits for it
                reader = await cache.pull.open_blob(APP, digest)
                fill = cache.fills.find(digest)
                assert fill is not None
                assert await read_all(reader) == data
                assert (True, False) == (fill.verified, fill.complete)
            reader.close()
            await until(lambda fill=fill: fill.complete)  # type: ignore[misc]


async def test_a_reader_far_ahead_goes_past(tmp_path: Path) -> None:
    """A range far beyond the fill is read straight from the upstream and counted, while the fill goes on; one that is
    near waits."""
    async with caching(tmp_path, replace(POLICY, far_range_bytes=1_000_000)) as cache:
        gate = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(stop_at=100_000, gate=gate), Body())
        first = await cache.pull.open_blob(APP, digest)
        far = await cache.pull.fetch_blob(APP, digest, 2_500_000)
        assert (Kind.BYPASS, "far ahead of the fill") == (far.provenance.kind, far.provenance.reason)
        assert len(DATA) == far.value.size
        assert await read_all(far.value, start=2_500_000) == DATA[2_500_000:]
        assert cache.upstream.offsets == [0, 2_500_000]
        leaping = await cache.pull.open_blob(APP, digest)
        assert await leaping.read(2_900_000, 1000) == DATA[2_900_000:2_901_000]
        leaping.close()
        assert (1, cache.counters.diverted) == (cache.counters.answers["bypass"], 1)
        near = await cache.pull.fetch_blob(APP, digest, 900_000)
        assert near.provenance.kind is Kind.JOINED
        gate.set()
        assert await read_all(near.value, start=900_000) == DATA[900_000:]
        assert await read_all(first) == DATA
        cold = cache.upstream.add_blob(DATA[1:])
        ahead = await cache.pull.fetch_blob(APP, cold, 2_000_000)
        assert ahead.provenance.kind is Kind.BYPASS
        assert await read_all(ahead.value, start=2_000_000) == DATA[2_000_001:]
        assert await kept(cache, cold) == DATA[1:]


async def test_the_end_of_a_cold_blob_goes_past(tmp_path: Path) -> None:
    """A reader that begins so many bytes before the end is told that it is served past a fill that is far from there,
    and by it where that is near, of a known size or not."""
    async with caching(tmp_path, replace(POLICY, far_range_bytes=1_000_000)) as cache:
        for length, body, expected in (
            (1000, Body(), (Kind.BYPASS, "far ahead of the fill")),
            (len(DATA) - 900_000, Body(), (Kind.STARTED, None)),
            (2 * len(DATA), Body(), (Kind.STARTED, None)),
            (1000, UNSIZED, (Kind.STARTED, None)),
        ):
            data = os.urandom(len(DATA))
            gate = asyncio.Event()
            digest = cache.upstream.add_blob(data, replace(body, stop_at=600_000, gate=gate), Body())
            fetched = await cache.pull.fetch_blob(APP, digest, -length)
            assert expected == (fetched.provenance.kind, fetched.provenance.reason)
            if expected[0] is Kind.STARTED:
                gate.set()
            start = max(len(data) - length, 0)
            assert data[start:] == await read_all(fetched.value, start=start)
            gate.set()
            assert data == await kept(cache, digest)


@pytest.mark.parametrize("harm", ["vanished", "short"])
async def test_a_damaged_blob_is_fetched_again(tmp_path: Path, harm: str) -> None:
    """A held blob whose file is missing or of the wrong length comes from the upstream, and is then whole."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(DATA)
        await read_all(await cache.pull.open_blob(APP, digest))
        await cache.idle()
        path = cache.store.paths.content(digest)
        path.unlink() if harm == "vanished" else os.truncate(path, 1000)
        assert await read_all(await cache.pull.open_blob(APP, digest)) == DATA
        assert await kept(cache, digest) == DATA
        assert cache.upstream.asked["open"] == 2


async def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    """A reader that knows the size refuses what lies behind, and a closed one refuses everything."""
    async with caching(tmp_path) as cache:
        reader = await cache.pull.open_blob(APP, cache.upstream.add_blob(DATA))
        with pytest.raises(StoreDamaged):
            await reader.read(len(DATA) - 1, 2)
        reader.close()
        reader.close()
        with pytest.raises(StoreDamaged):
            await reader.read(0, 1)


async def test_stat_asks_and_does_not_fetch(tmp_path: Path) -> None:
    """The size of a blob that is not here is the upstream's; no byte of it is transferred for that."""
    async with caching(tmp_path) as cache:
        digest = cache.upstream.add_blob(DATA)
        found = await cache.pull.stat_blob(APP, digest)
        assert (len(DATA), Kind.UPSTREAM, 0) == (found.value, found.provenance.kind, cache.upstream.sent_bytes)
        await read_all(await cache.pull.open_blob(APP, digest))
        await cache.idle()
        assert (await cache.pull.stat_blob(APP, digest)).provenance.kind is Kind.HIT

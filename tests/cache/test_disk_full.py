"""A store without room: what comes from the upstream is passed through, verified all the same, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, LATEST, Body, Cache, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.fill import WITHHELD_BYTES
from sluice.cache.space import SpaceSettings
from sluice.errors import UpstreamFailed, UpstreamInvalid
from sluice.oci.digest import Digest
from sluice.testing.content import image

DISK_BYTES = 32 << 20
ROOM_BYTES = 3 << 20  # left on the disk when it is "nearly full"
DATA = os.urandom(8 << 20)
SMALL = os.urandom(50_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path)


def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of ``DISK_BYTES`` of its own, ``disk``."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path, room_bytes: int = 0) -> Path:
    """Leave no more than ``room_bytes`` on the disk."""
    status = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - room_bytes)))
        while room_bytes == 0:
            file.write(bytes(4096))
    return filler


async def kept_again(cache: Cache, digest: Digest, data: bytes) -> None:
    """Pull once more with room, and find the blob in the store."""
    assert await read_all(await cache.pull.open_blob(APP, digest)) == data
    await cache.idle()
    assert await read_all(await cache.store.open_blob(APP, digest)) == data


@pytest.mark.parametrize("sized", [True, False])
async def test_a_full_disk_passes_through(disk: Path, sized: bool) -> None:
    """Where no fill can begin, blobs of any size come straight from the upstream, and say so; with room again they are
    kept."""
    async with caching(disk / "data") as cache:
        filler = fill(disk)
        for data in (DATA, SMALL):
            digest = cache.upstream.add_blob(data, Body(sized=sized))
            fetched = await cache.pull.fetch_blob(APP, digest)
            assert (Kind.BYPASS, "no room to keep it") == (fetched.provenance.kind, fetched.provenance.reason)
            assert await read_all(fetched.value) == data
        assert (set(), []) == (cache.contents(), cache.uploads())
        assert cache.counters.unkept == 2
        filler.unlink()
        await kept_again(cache, digest, SMALL)


async def test_images_leave_for_the_reserve(disk: Path) -> None:
    """Without a budget it is the disk that bounds a cache: the image used longest ago leaves for the next one, and for
    what others write, and the reserve stays free."""
    reserve = DISK_BYTES // 4
    async with caching(disk / "data", space=SpaceSettings(0, 0), reserve_bytes=reserve) as cache:
        for number in range(6):
            cache.clock.now += 1
            assert await read_all(await cache.pull.open_blob(APP, cache.upstream.add_blob(DATA + bytes([number]))))
            await cache.idle()
            assert cache.store.free_bytes() >= 0
        status = await cache.space.status()
        assert (2, 4) == (status.images, status.evicted_images)
        fill(disk, reserve - ROOM_BYTES)
        await cache.space.sweep()
        assert cache.store.free_bytes() >= 0
        assert (await cache.space.status()).images == 1
        assert cache.counters.unkept == 0


@pytest.mark.parametrize("sized", [True, False])
async def test_a_disk_that_fills_up_cuts_no_reader(disk: Path, sized: bool) -> None:
    """When the disk fills up in the middle of a fill, every attached reader gets its bytes to the end, wherever it is,
    straight from the upstream; the spool is gone, and with room again the blob is kept."""
    async with caching(disk / "data") as cache:
        filler = fill(disk, ROOM_BYTES)
        gate = asyncio.Event()
        digest = cache.upstream.add_blob(DATA, Body(sized=sized, stop_at=1 << 20, gate=gate), Body(sized=sized))
        readers = [await cache.pull.open_blob(APP, digest, offset) for offset in (0, 0, 500_000, 6 << 20)]
        assert await readers[1].read(0, 300_000) == DATA[:300_000]
        gate.set()
        await cache.idle()
        assert (set(), []) == (cache.contents(), cache.uploads())
        starts = (0, 300_000, 500_000, 6 << 20)
        got = await asyncio.gather(*(read_all(one, start=at) for one, at in zip(readers, starts, strict=True)))
        assert [DATA[at:] for at in starts] == got
        assert cache.counters.diverted == len(readers)
        filler.unlink()
        await kept_again(cache, digest, DATA)


@pytest.mark.parametrize("body", [Body(flip_at=7 << 20), Body(flip_at=len(DATA) - 1, sized=False)])
async def test_what_passes_through_is_verified(disk: Path, body: Body) -> None:
    """A wrong blob completes no reader without the store's help either: not one that came too late for a fill, and not
    one whose fill ended for want of room; a small one is not even begun."""
    async with caching(disk / "data") as cache:
        filler = fill(disk)
        digest = cache.upstream.add_blob(DATA, body)
        await assert_ends_short(cache, digest)
        small = cache.upstream.add_blob(SMALL, replace(body, flip_at=0))
        with pytest.raises(UpstreamInvalid):
            await cache.pull.open_blob(APP, small)
        filler.unlink()
        fill(disk, ROOM_BYTES)
        await assert_ends_short(cache, digest)


async def assert_ends_short(cache: Cache, digest: Digest) -> None:
    reader = await cache.pull.open_blob(APP, digest)
    position = 0
    with contextlib.suppress(UpstreamInvalid):
        while position < len(DATA):
            want = min(100_000, len(DATA) - position)
            position += len(await reader.read(position, want))
    assert position <= len(DATA) - WITHHELD_BYTES
    with pytest.raises(UpstreamInvalid):
        await reader.read(position, 1)
    reader.close()


async def test_a_break_while_passing_through_is_an_error(disk: Path) -> None:
    """What breaks off while it is passed through ends short with the error, for the client to resume."""
    async with caching(disk / "data") as cache:
        fill(disk)
        digest = cache.upstream.add_blob(DATA, Body(cut_at=1 << 20))
        with pytest.raises(UpstreamFailed):
            await read_all(await cache.pull.open_blob(APP, digest))


async def test_manifests_pass_through_too(disk: Path) -> None:
    """Tags and manifests that cannot be kept are served all the same; known tags need no room to be served stale."""
    async with caching(disk / "data") as cache:
        manifest = cache.upstream.add_image(image(b"{}", SMALL), b"{}", SMALL)
        filler = fill(disk)
        for _ in range(2):
            assert (await cache.pull.resolve(APP, LATEST)).digest == manifest.digest
            assert manifest == await cache.pull.manifest(APP, manifest.digest)
        filler.unlink()
        assert (await cache.pull.resolve(APP, LATEST)).digest == manifest.digest
        assert (await cache.store.resolve(APP, LATEST)).digest == manifest.digest
        fill(disk)
        cache.clock.now += 30 * 86_400
        cache.upstream.error = UpstreamFailed("down")
        fetched = await cache.pull.fetch_descriptor(APP, LATEST)
        assert (manifest.digest, Kind.STALE) == (fetched.value.digest, fetched.provenance.kind)
        await until(lambda: cache.counters.fills_active == 0)

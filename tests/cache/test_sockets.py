"""The cache before real upstreams: scripted servers over sockets, asked by the real client."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache.scripted import APP, LATEST, POLICY, Cache, caching, read_all, until
from sluice.cache.answers import Kind
from sluice.cache.fill import WITHHELD_BYTES
from sluice.cache.policy import CachePolicy
from sluice.cache.pullthrough import PullThrough
from sluice.errors import (
    BlobUnknown,
    SluiceError,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sluice.oci.digest import Digest
from sluice.testing.upstreams import (
    Cut,
    Failing,
    Fault,
    GeneratedBlob,
    Liar,
    RateLimited,
    Slow,
    Stall,
    UpstreamContent,
    UpstreamServer,
    blobs,
    refused_address,
    silent,
    unresolvable_address,
)
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import UpstreamLimits, UpstreamSettings
from sluice.wire.address import parse_upstream

SIZE = 3_000_000
DATA = random.Random(1).randbytes(SIZE)
LIMITS = UpstreamLimits(connect_s=1.0, head_s=1.0, idle_s=0.5, tries=1, backoff_s=0.01)


@dataclass
class Site:
    """A scripted upstream with one image, and a cache before it."""

    server: UpstreamServer
    cache: Cache
    layer: Digest

    @property
    def pull(self) -> PullThrough:
        return self.cache.pull

    def left(self) -> tuple[list[str], set[str]]:
        return self.cache.uploads(), self.cache.contents()


@asynccontextmanager
async def before(address: str, data: Path, policy: CachePolicy = POLICY) -> AsyncIterator[Cache]:
    """A cache before ``address``."""
    async with caching(data, policy) as cache:
        settings = UpstreamSettings("upstream", parse_upstream(address), limits=LIMITS)
        registry = RemoteRegistry(settings)
        cache.pull = PullThrough(cache.store, registry, cache.fills, policy=policy, clock=cache.clock)
        try:
            yield cache
            await cache.idle()
        finally:
            await cache.fills.close()
            await cache.pull.close()
            await registry.close()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def site(data: Path, *faults: Fault, policy: CachePolicy = POLICY) -> AsyncIterator[Site]:
    content = UpstreamContent()
    content.push_image(APP, LATEST, [DATA])
    with UpstreamServer(content, faults=faults) as server:
        async with before(server.address, data, policy) as cache:
            yield Site(server, cache, Digest.of(DATA))


async def test_a_crowd_is_one_get(tmp_path: Path) -> None:
    """A hundred readers of a cold image, some of whom leave, are one GET for each digest; then the upstream goes, and
    everything is served on."""
    async with site(tmp_path, Slow(4_000_000, when=blobs)) as one:
        descriptors = await asyncio.gather(*(one.pull.resolve(APP, LATEST) for _ in range(100)))
        manifest = await one.pull.manifest(APP, descriptors[0].digest)

        async def read(number: int) -> bytes:
            offset = (number % 3) * 1_000_000
            return await read_all(await one.pull.open_blob(APP, one.layer, offset), 50_000, offset)

        readers = [asyncio.create_task(read(number)) for number in range(100)]
        await until(lambda: one.cache.counters.upstream_bytes > 100_000)
        for reader in readers[::5]:
            reader.cancel()
        got = await asyncio.gather(*readers, return_exceptions=True)
        expected = [DATA[(number % 3) * 1_000_000 :] for number in range(100)]
        assert [data for n, data in enumerate(got) if n % 5] == [data for n, data in enumerate(expected) if n % 5]
        await read_all(await one.pull.open_blob(APP, manifest.children[0].digest))
        await one.cache.idle()
        digests = [manifest.digest, *(child.digest for child in manifest.children)]
        assert [1, 1, 1] == [one.server.gets(digest) for digest in digests]
        one.server.stop()
        one.cache.clock.now += 30 * 86_400
        fetched = await one.pull.fetch_descriptor(APP, LATEST)
        assert (manifest.digest, Kind.STALE) == (fetched.value.digest, fetched.provenance.kind)
        assert await read_all(await one.pull.open_blob(APP, one.layer)) == DATA


@pytest.mark.parametrize(
    "fault",
    [
        Cut(1_000_000, times=1),
        Cut(1_000_000, times=1, rst=True),
        Cut(200_000, times=3),
        Cut(before_head=True, times=1, when=blobs),
        Stall(1_000_000, times=1, when=blobs),
        Liar("no-range", times=1, when=blobs),
        Liar("chunked-no-length", when=blobs),
        Liar("until-close", when=blobs),
    ],
    ids=lambda fault: f"{type(fault).__name__} {getattr(fault, 'kind', '')}",
)
async def test_a_fault_that_passes_is_not_noticed(tmp_path: Path, fault: Fault) -> None:
    """A body that breaks off or stalls goes on where it was, and an unknown length is no obstacle."""
    async with site(tmp_path, fault) as one:
        if getattr(fault, "before_head", False):
            with pytest.raises(UpstreamUnreachable):
                await one.pull.open_blob(APP, one.layer)
        assert await read_all(await one.pull.open_blob(APP, one.layer)) == DATA
        await one.cache.idle()
        assert await read_all(await one.cache.store.open_blob(APP, one.layer)) == DATA


@pytest.mark.parametrize(
    "fault",
    [
        Liar("bytes", at=0, when=blobs),
        Liar("bytes", at=-1, when=blobs),
        Liar("short", when=blobs),
        Liar("long", when=blobs),
        Liar("html", when=blobs),
        Cut(0, when=blobs),
        Stall(0, when=blobs),
        Failing(503, when=blobs),
        RateLimited(7, when=blobs),
    ],
    ids=lambda fault: f"{type(fault).__name__} {getattr(fault, 'kind', '')}",
)
async def test_a_fault_that_stays_completes_no_reader(tmp_path: Path, fault: Fault) -> None:
    """Readers end short with an UpstreamError, nothing is kept, and the next one starts afresh once it is over."""
    async with site(tmp_path, fault, policy=replace(POLICY, fill_tries=2)) as one:

        async def read() -> tuple[int, SluiceError | None]:
            position = 0
            try:
                reader = await one.pull.open_blob(APP, one.layer)
            except UpstreamError as error:
                return 0, error
            try:
                while position < SIZE:
                    position += len(await reader.read(position, min(50_000, SIZE - position)))
            except UpstreamError as error:
                return position, error
            finally:
                reader.close()
            return position, None

        for position, error in await asyncio.gather(*(read() for _ in range(5))):
            assert error is not None
            assert position <= SIZE - WITHHELD_BYTES
            assert isinstance(error, UpstreamRateLimited) == isinstance(fault, RateLimited)
        await one.cache.idle()
        assert ([], set()) == one.left()
        one.server.faults = ()
        one.cache.clock.now += POLICY.negative_s
        await until_served(one)


async def until_served(one: Site) -> None:
    """The upstream client may take a while to believe that its upstream is back."""
    for _ in range(100):
        try:
            assert await read_all(await one.pull.open_blob(APP, one.layer)) == DATA
        except UpstreamError:
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError("the upstream is well and is not asked")


@contextmanager
def dead(how: str) -> Iterator[str]:
    with ExitStack() as stack:
        if how == "refused":
            yield stack.enter_context(refused_address())
        elif how == "silent":
            yield stack.enter_context(silent())
        else:
            yield unresolvable_address()


@pytest.mark.parametrize("how", ["refused", "silent", "dns"])
async def test_a_dead_upstream_is_never_a_404(tmp_path: Path, how: str) -> None:
    """What is unknown is a 502 or 504 with the reason; what was held before is served, and a tag is stale."""
    async with site(tmp_path / "data") as one:
        descriptor = await one.pull.resolve(APP, LATEST)
        await read_all(await one.pull.open_blob(APP, one.layer))
    with dead(how) as address:
        async with before(address, tmp_path / "data") as cache:
            cache.clock.now += 30 * 86_400
            fetched = await cache.pull.fetch_descriptor(APP, LATEST)
            expected = "timeout" if how == "silent" else "unreachable"
            assert (descriptor.digest, Kind.STALE, expected) == (
                fetched.value.digest,
                *(fetched.provenance.kind, fetched.provenance.reason),
            )
            assert await read_all(await cache.pull.open_blob(APP, one.layer)) == DATA
            with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
                await cache.pull.open_blob(APP, Digest.of(b"unknown"))


async def test_the_upstream_stops_and_comes_back(tmp_path: Path) -> None:
    """Stopped in mid-body and started again, the upstream is asked for the rest, and the reader notices nothing."""
    patient = replace(POLICY, fill_tries=50, fill_pause_s=0.05)
    async with site(tmp_path, Slow(2_000_000, times=1, when=blobs), policy=patient) as one:
        reading = asyncio.create_task(read_all(await one.pull.open_blob(APP, one.layer)))
        await until(lambda: one.cache.counters.upstream_bytes > 500_000)
        await asyncio.to_thread(one.server.stop)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(one.server.start)
        assert await reading == DATA
        assert one.cache.counters.resumes >= 1


async def test_what_vanishes_is_kept(tmp_path: Path) -> None:
    """A blob and a tag that the upstream deletes are served on; what it never had is a 404."""
    async with site(tmp_path) as one:
        descriptor = await one.pull.resolve(APP, LATEST)
        await read_all(await one.pull.open_blob(APP, one.layer))
        one.server.content.delete_tag(APP, LATEST)
        one.server.content.delete_blob(APP, one.layer)
        one.cache.clock.now += 30 * 86_400
        fetched = await one.pull.fetch_descriptor(APP, LATEST)
        assert (descriptor.digest, "gone") == (fetched.value.digest, fetched.provenance.reason)
        assert await read_all(await one.pull.open_blob(APP, one.layer)) == DATA
        with pytest.raises(BlobUnknown):
            await one.pull.open_blob(APP, Digest.of(b"never there"))


async def test_a_huge_blob_costs_no_memory(tmp_path: Path) -> None:
    """While 256 MiB go through, with a paused and a running reader, the process grows by little."""
    async with site(tmp_path) as one:
        huge = GeneratedBlob(256 << 20)
        one.server.content.hold_blob(APP, huge)
        digest = huge.digest
        await read_all(await one.pull.open_blob(APP, one.layer))
        grown_from = resident_bytes()
        paused = await one.pull.open_blob(APP, digest)
        reader = await one.pull.open_blob(APP, digest)
        position, most = 0, 0
        while position < huge.size:
            position += len(await reader.read(position, min(131_072, huge.size - position)))
            most = max(most, resident_bytes() - grown_from)
        reader.close()
        paused.close()
        assert most < 64 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

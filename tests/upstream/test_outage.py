"""What happens round a failure: tries, the breaker, mirrors, and what is held back."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sluice.errors import (
    SluiceError,
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sluice.oci.digest import Digest
from sluice.oci.reference import Tag
from sluice.testing.server import free_port
from sluice.upstream.breaker import DELAY_MAX_S, FAILURES_TO_OPEN, Breaker
from sluice.upstream.rate import RateLimit
from sluice.upstream.settings import UpstreamLimits
from upstream.scripted import (
    APP,
    BLOB,
    BLOB_DIGEST,
    MANIFEST,
    MANIFEST_DIGEST,
    Answer,
    Asked,
    Scripted,
    content,
    plain,
    registry_at,
)

PAGE = Answer(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>")


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        (Answer(500), 3),
        (Answer(503, {"Retry-After": "0"}), 3),
        (Answer(503, {"Retry-After": "60"}), 1),
        (Answer(429), 1),
        (Answer(429, {"Retry-After": "0"}), 3),
        (Answer(429, {"Retry-After": "60"}), 1),
        (Answer(504), 1),
        (Answer(403), 1),
        (Answer(404), 1),
        (Answer(400), 1),
    ],
    ids=lambda value: f"{value.status} {value.headers}" if isinstance(value, Answer) else None,
)
def test_only_what_may_pass_is_tried_again(failure: Answer, attempts: int) -> None:
    """Three times at most, and a rate limit only where it says that it is over at once."""

    async def story() -> None:
        async with Scripted(lambda asked: failure) as server:
            registry = registry_at(server)
            with pytest.raises(SluiceError):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert attempts == len(server.asked)
            await registry.close()

    asyncio.run(story())


def test_a_failure_that_passes_is_not_seen() -> None:
    """The third try succeeds, and so does the request."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(502) if len(server.asked) < 3 else plain(asked)) as server:
            registry = registry_at(server)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_a_rate_limit_says_when_to_come_back_and_what_is_left() -> None:
    """``retry_after_s`` is the upstream's; the quota of any answer is kept for metrics."""

    quota = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0;w=21600", "Retry-After": "77"}

    async def story() -> None:
        async with Scripted(lambda asked: Answer(429, quota)) as server:
            registry = registry_at(server)
            assert [None] == [registry.rate_limit]
            with pytest.raises(UpstreamRateLimited) as caught:
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 77 == caught.value.retry_after_s
            assert RateLimit(100, 0, 21600) == registry.rate_limit
            await registry.close()

    asyncio.run(story())


def test_a_dead_upstream_is_left_alone_until_a_probe() -> None:
    """After three requests for different things that failed, two of them after all their tries, nothing is sent, and
    the error's kind is remembered; one probe at a time closes it again."""

    async def story() -> None:
        now = [0.0]
        async with Scripted(lambda asked: Answer(500)) as server:
            registry = registry_at(server, clock=lambda: now[0])
            for number in range(5):
                with pytest.raises(UpstreamFailed):
                    await registry.manifest(APP, Digest.of(bytes([number])))
            assert [7, True] == [len(server.asked), registry.is_broken]
            now[0] = 1.0
            with pytest.raises(UpstreamFailed):
                await registry.manifest(APP, MANIFEST_DIGEST)
            now[0] = 2.9
            with pytest.raises(UpstreamFailed, match="not asked again yet"):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 8 == len(server.asked)
            now[0], server.script = 3.0, plain
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            assert [9, False] == [len(server.asked), registry.is_broken]
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("status", [500, 503, 504])
def test_what_an_upstream_cannot_read_is_not_its_end(status: int) -> None:
    """One thing that is answered with 5xx however often, and another one, leave the circuit closed: the rest is served
    as ever. That counts anew after each success."""

    async def story() -> None:
        broken = [Digest.of(bytes([number])) for number in range(2)]
        async with Scripted(
            lambda asked: Answer(status) if any(str(one) in asked.path for one in broken) else plain(asked)
        ) as server:
            registry = registry_at(server)
            for digest in [*broken[:1] * 5, *broken[1:] * 5, *broken]:
                with pytest.raises((UpstreamFailed, UpstreamTimeout), match=f"answers {status}"):
                    await registry.manifest(APP, digest)
                assert not registry.is_broken
            for digest in broken:
                assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
                with pytest.raises((UpstreamFailed, UpstreamTimeout), match=f"answers {status}"):
                    await registry.manifest(APP, digest)
            await registry.close()

    asyncio.run(story())


def test_an_upstream_that_is_not_there_counts_each_time() -> None:
    """One request that finds nobody listening, with its tries, opens the circuit."""

    async def story() -> None:
        registry = registry_at(f"http://127.0.0.1:{free_port()}")
        with pytest.raises(UpstreamUnreachable):
            await registry.manifest(APP, MANIFEST_DIGEST)
        assert registry.is_broken
        await registry.close()

    asyncio.run(story())


def test_an_upstream_that_answers_nothing_but_probes_is_left_alone_for_longer() -> None:
    """A circuit that opens again soon after it closed stays open for twice as long, up to the limit."""
    breaker = Breaker()
    now, waits = 0.0, []
    for pause in (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, DELAY_MAX_S):
        for _ in range(FAILURES_TO_OPEN):
            breaker.failed(now)
        assert breaker.retry_at is not None
        waits.append(round(breaker.retry_at - now, 3))
        now = breaker.retry_at
        assert breaker.allow(now)
        breaker.succeeded(now)
        now += pause
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    assert breaker.retry_at is not None
    assert [1, 2, 4, 8, 16, 30, 30, 1] == [*waits, round(breaker.retry_at - now, 3)]


def test_a_probe_that_is_abandoned_does_not_block_the_next() -> None:
    """Its asker leaves while it waits; the next one probes."""

    async def story() -> None:
        now = [0.0]
        async with Scripted(lambda asked: Answer(500)) as server:
            registry = registry_at(server, clock=lambda: now[0])
            for number in range(3):
                with pytest.raises(UpstreamFailed):
                    await registry.manifest(APP, Digest.of(bytes([number])))
            now[0], server.script = 1.0, lambda asked: Answer(0)
            probe = asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST))
            while len(server.asked) < 8:
                await asyncio.sleep(0.01)
            with pytest.raises(UpstreamFailed):
                await registry.manifest(APP, MANIFEST_DIGEST)
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)
            server.script = plain
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_connections_are_bounded_and_come_back() -> None:
    """With both in use the next blob waits, then says which setting it is; a closed one is free again."""

    async def story() -> None:
        limits = UpstreamLimits(connections=2, head_s=0.3)
        async with Scripted(lambda asked: Answer(body=BLOB, length=len(BLOB) + 1, stall=True)) as server:
            registry = registry_at(server, limits=limits)
            one = await registry.open_blob(APP, BLOB_DIGEST)
            await registry.open_blob(APP, BLOB_DIGEST)
            with pytest.raises(UpstreamTimeout, match=r"all 2 connections .* raise upstream\.connections"):
                await registry.open_blob(APP, BLOB_DIGEST)
            assert 2 == len(server.asked)
            one.close()
            (await registry.open_blob(APP, BLOB_DIGEST)).close()
            await registry.close()

    asyncio.run(story())


def test_small_answers_never_wait_for_blobs() -> None:
    """Readers who pause take all connections for blobs; manifests, by tag and digest, come at once all the same, and
    they too are bounded."""

    async def story() -> None:
        limits = UpstreamLimits(connections=2, small_connections=1, head_s=0.3)
        stalling = [False]

        def script(asked: Asked) -> Answer:
            if "/blobs/" in asked.path:
                return Answer(body=BLOB, length=len(BLOB) + 1, stall=True)
            return Answer(0) if stalling[0] else plain(asked)

        async with Scripted(script) as server:
            registry = registry_at(server, limits=limits)
            readers = [await registry.open_blob(APP, BLOB_DIGEST) for _ in range(2)]
            for _ in range(3):
                assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
                assert MANIFEST == (await registry.manifest_by_tag(APP, Tag("v1"))).raw
            stalling[0] = True
            first = asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST))
            seen = await asyncio.gather(first, second, return_exceptions=True)
            assert [UpstreamTimeout] * 2 == [type(one) for one in seen]
            for reader in readers:
                reader.close()
            await registry.close()

    asyncio.run(story())


def test_a_mirror_is_asked_when_the_upstream_cannot_be() -> None:
    """In order; one that lacks the content is passed over; the whole Source works from it."""

    async def story() -> None:
        async with Scripted(plain) as good, Scripted(lambda asked: Answer(404)) as empty:
            registry = registry_at(f"http://127.0.0.1:{free_port()}", empty, good)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            assert BLOB[9:] == await content(registry, 9)
            assert (2, 2) == (len(empty.asked), len(good.asked))
            await registry.close()

    asyncio.run(story())


def test_a_liar_is_passed_over_for_a_mirror() -> None:
    """Wrong bytes are a failure like any other."""

    async def story() -> None:
        async with Scripted(lambda asked: PAGE) as liar, Scripted(plain) as good:
            registry = registry_at(liar, good)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_the_upstreams_own_word_is_final(status: int) -> None:
    """Where it says no, no mirror is asked."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(status)) as home, Scripted(plain) as mirror:
            registry = registry_at(home, mirror)
            with pytest.raises(SluiceError):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert [] == mirror.asked
            await registry.close()

    asyncio.run(story())


def test_mirrors_without_the_content_prove_nothing() -> None:
    """The upstream's failure is the answer, not the mirror's 404."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(404)) as mirror:
            registry = registry_at(f"http://127.0.0.1:{free_port()}", mirror)
            with pytest.raises(UpstreamUnreachable):
                await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())


def test_a_paused_reader_holds_the_upstream_up() -> None:
    """What the server could send is what the kernel's buffers take, far from all of it; and the rest comes later."""

    size = 64 << 20

    async def story() -> None:
        sent = 0

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16
            writer.close()

        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        server = await asyncio.start_server(speak, sock=listening)
        registry = registry_at(f"http://127.0.0.1:{listening.getsockname()[1]}")
        blob = await registry.open_blob(APP, BLOB_DIGEST)
        await blob.read_next(1)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < size // 2
        rest = 1
        while data := await blob.read_next(1 << 20):
            rest += len(data)
        assert size == rest
        blob.close()
        await registry.close()
        server.close()

    asyncio.run(story())

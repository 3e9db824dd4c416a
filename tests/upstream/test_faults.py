"""Upstreams that fail: each in its own way, told apart, and never taken for a 404."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from sluice.errors import (
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
from sluice.oci.reference import Tag
from sluice.testing.server import free_port
from sluice.upstream.rate import RateLimit
from sluice.upstream.settings import UpstreamLimits
from upstream.scripted import (
    APP,
    BLOB,
    BLOB_DIGEST,
    MANIFEST,
    MANIFEST_DIGEST,
    MANIFEST_HEADERS,
    QUICK,
    STEADY,
    Answer,
    Asked,
    Scripted,
    content,
    plain,
    registry_at,
)

HTML = b"<!doctype html><title>Sign in</title>"
PAGE = Answer(200, {"Content-Type": "text/html"}, HTML)
OTHER = {"Docker-Content-Digest": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(500), UpstreamFailed),
        (Answer(503), UpstreamFailed),
        (Answer(504), UpstreamTimeout),
        (Answer(408), UpstreamTimeout),
        (Answer(429), UpstreamRateLimited),
        (Answer(401), UpstreamUnauthorized),
        (Answer(403), UpstreamUnauthorized),
        (Answer(508), UpstreamLoop),
        (Answer(400), UpstreamInvalid),
        (Answer(410), UpstreamInvalid),
        (Answer(204), UpstreamInvalid),
        (PAGE, UpstreamInvalid),
        (Answer(200, MANIFEST_HEADERS, MANIFEST + b" "), UpstreamInvalid),
        (Answer(200, {**MANIFEST_HEADERS, "Content-Type": "text/html"}, b"{}"), UpstreamInvalid),
        (Answer(200, MANIFEST_HEADERS, b" " * (STEADY.manifest_bytes + 1)), UpstreamInvalid),
        (Answer(200, MANIFEST_HEADERS, MANIFEST, length=len(MANIFEST) + 1), UpstreamFailed),
        (Answer(200, MANIFEST_HEADERS, MANIFEST, length=len(MANIFEST) - 1), UpstreamInvalid),
        (Answer(200, MANIFEST_HEADERS, MANIFEST, length=len(MANIFEST) + 1, stall=True), UpstreamTimeout),
        (Answer(0), UpstreamTimeout),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_manifest_that_cannot_be_had_says_why(answer: Answer, kind: type[UpstreamError]) -> None:
    """Each way has its own class; the message names the URL."""

    async def story() -> None:
        async with Scripted(lambda asked: answer) as server:
            registry = registry_at(server, limits=QUICK)
            with pytest.raises(UpstreamError) as caught:
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert kind is type(caught.value)
            assert server.url() in caught.value.message
            await registry.close()

    asyncio.run(story())


def test_the_upstreams_own_words_are_in_the_message() -> None:
    """Cut and printable, with the status."""

    async def story() -> None:
        body = b'{"errors":[{"code":"DENIED","message":"no plan\\u0007 for you"}]}'
        async with Scripted(lambda asked: Answer(403, body=body)) as server:
            registry = registry_at(server)
            with pytest.raises(UpstreamUnauthorized, match=r"answers 403 \(DENIED: no plan\? for you\)"):
                await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(body=BLOB, length=len(BLOB) + 1), UpstreamFailed),
        (Answer(body=BLOB[:-1], length=len(BLOB), cut=True), UpstreamFailed),
        (Answer(body=BLOB[:-1], chunked=True, cut=True), UpstreamFailed),
        (Answer(body=BLOB[:-1], length=len(BLOB), stall=True), UpstreamTimeout),
        (Answer(200, OTHER, BLOB), UpstreamInvalid),
        (Answer(206, {"Content-Range": f"bytes 0-9/{len(BLOB)}"}, BLOB[:10]), UpstreamInvalid),
        (Answer(416), UpstreamInvalid),
        (Answer(500), UpstreamFailed),
    ],
    ids=["short", "reset", "reset, chunked", "stall", "digest header", "206 unasked", "416", "500"],
)
def test_a_blob_that_cannot_be_had_says_why(answer: Answer, kind: type[UpstreamError]) -> None:
    """At the head, or where the body breaks."""

    async def story() -> None:
        async with Scripted(lambda asked: answer) as server:
            registry = registry_at(server, limits=QUICK)
            with pytest.raises(UpstreamError) as caught:
                await content(registry)
            assert kind is type(caught.value)
            await registry.close()

    asyncio.run(story())


def test_what_came_before_a_cut_is_not_lost() -> None:
    """Every byte that arrived can be read; then the error; then the rest from there, asked for by Range."""

    def script(asked: Asked) -> Answer:
        return plain(asked) if "range" in asked.headers else Answer(body=BLOB[:700_000], length=len(BLOB), cut=True)

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            with pytest.raises(UpstreamFailed):
                await blob.read(0, len(BLOB))
            assert BLOB[:700_000] == await blob.read_next(len(BLOB))
            blob.close()
            assert BLOB[700_000:] == await content(registry, 700_000)
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "ranged",
    [
        {"Content-Range": f"bytes 4-{len(BLOB) - 1}/{len(BLOB)}"},
        {"Content-Range": f"bytes 5-{len(BLOB)}/{len(BLOB)}"},
        {"Content-Range": f"bytes 5-{len(BLOB) - 2}/*"},
        {},
    ],
    ids=["other start", "beyond its end", "shorter than it is", "none"],
)
def test_a_range_that_contradicts_itself_is_refused(ranged: dict[str, str]) -> None:
    """Bytes are never taken for others."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(206, ranged, BLOB[5:], chunked=True)) as server:
            registry = registry_at(server)
            with pytest.raises(UpstreamInvalid):
                await content(registry, 5)
            await registry.close()

    asyncio.run(story())


def test_a_body_longer_than_its_size_is_refused() -> None:
    """Where the size comes from Content-Range and the body has no length of its own."""

    async def story() -> None:
        ranged = {"Content-Range": f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}"}
        for extra in (b"x", b"x" * 100_000):
            async with Scripted(
                lambda asked, extra=extra: Answer(206, ranged, BLOB[5:] + extra, chunked=True)
            ) as server:
                registry = registry_at(server)
                with pytest.raises(UpstreamInvalid, match="goes on after"):
                    await content(registry, 5)
                await registry.close()

    asyncio.run(story())


def closing_port() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (closing_port, UpstreamUnreachable),
        (lambda: "http://nowhere.invalid", UpstreamUnreachable),
    ],
    ids=["refused", "no such name"],
)
def test_a_dead_upstream_is_unreachable(url: Callable[[], str], kind: type[UpstreamError]) -> None:
    """Refused and unknown alike; the message has the reason."""

    async def story() -> None:
        registry = registry_at(url(), limits=QUICK)
        with pytest.raises(kind, match="cannot be reached: "):
            await registry.resolve(APP, Tag("v1"))
        await registry.close()

    asyncio.run(story())


def test_plain_http_where_tls_is_expected_is_a_tls_failure() -> None:
    """It is not taken for an outage: trying again does not help."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(f"https://127.0.0.1:{server.port}", limits=QUICK)
            server._exchange = nonsense  # type: ignore[method-assign]
            with pytest.raises(UpstreamTlsFailed):
                await registry.resolve(APP, Tag("v1"))
            await registry.close()

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    asyncio.run(story())


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
def test_what_is_not_http_is_an_upstream_error(said: bytes) -> None:
    """Whatever listens there, no foreign exception leaves."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        registry = registry_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", limits=QUICK)
        with pytest.raises((UpstreamInvalid, UpstreamUnreachable)):
            await registry.resolve(APP, Tag("v1"))
        await registry.close()
        server.close()

    asyncio.run(story())


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
            assert registry.rate_limit is None
            with pytest.raises(UpstreamRateLimited) as caught:
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 77 == caught.value.retry_after_s
            assert RateLimit(100, 0, 21600) == registry.rate_limit
            await registry.close()

    asyncio.run(story())


def test_a_dead_upstream_is_left_alone_until_a_probe() -> None:
    """After three failures nothing is sent, and the error's kind is remembered; one probe at a time closes it again."""

    async def story() -> None:
        now = [0.0]
        async with Scripted(lambda asked: Answer(500)) as server:
            registry = registry_at(server, clock=lambda: now[0])
            for _ in range(5):
                with pytest.raises(UpstreamFailed):
                    await registry.manifest(APP, MANIFEST_DIGEST)
            assert (3, True) == (len(server.asked), registry.is_broken)
            now[0] = 1.0
            with pytest.raises(UpstreamFailed):
                await registry.manifest(APP, MANIFEST_DIGEST)
            now[0] = 2.9
            with pytest.raises(UpstreamFailed, match="not asked again yet"):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 4 == len(server.asked)
            now[0], server.script = 3.0, plain
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            assert (5, False) == (len(server.asked), registry.is_broken)
            await registry.close()

    asyncio.run(story())


def test_a_probe_that_is_abandoned_does_not_block_the_next() -> None:
    """Its asker leaves while it waits; the next one probes."""

    async def story() -> None:
        now = [0.0]
        async with Scripted(lambda asked: Answer(500)) as server:
            registry = registry_at(server, clock=lambda: now[0])
            with pytest.raises(UpstreamFailed):
                await registry.manifest(APP, MANIFEST_DIGEST)
            now[0], server.script = 1.0, lambda asked: Answer(0)
            probe = asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST))
            while len(server.asked) < 4:
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
    """With both in use the next waits, then says which limit it is; a closed one is free again."""

    async def story() -> None:
        limits = UpstreamLimits(connections=2, head_s=0.3)
        async with Scripted(lambda asked: Answer(body=BLOB, length=len(BLOB) + 1, stall=True)) as server:
            registry = registry_at(server, limits=limits)
            one = await registry.open_blob(APP, BLOB_DIGEST)
            await registry.open_blob(APP, BLOB_DIGEST)
            with pytest.raises(UpstreamTimeout, match="all 2 connections"):
                await registry.open_blob(APP, BLOB_DIGEST)
            assert 2 == len(server.asked)
            one.close()
            (await registry.open_blob(APP, BLOB_DIGEST)).close()
            await registry.close()

    asyncio.run(story())


def test_a_mirror_is_asked_when_the_upstream_cannot_be() -> None:
    """In order; one that lacks the content is passed over; the whole Source works from it."""

    async def story() -> None:
        async with Scripted(plain) as good, Scripted(lambda asked: Answer(404)) as empty:
            registry = registry_at(closing_port(), empty, good)
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
            registry = registry_at(closing_port(), mirror)
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

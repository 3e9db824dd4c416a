"""Upstreams that fail: each in its own way, told apart, and never taken for a 404."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sluice.errors import (
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
    always,
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
            async with Scripted(always(Answer(206, ranged, BLOB[5:] + extra, chunked=True))) as server:
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


def test_headers_that_are_not_ascii_are_not_there() -> None:
    """Whatever stands in them: the answer is judged by the rest."""
    strange = dict.fromkeys(("Docker-Content-Digest", "Content-Type", "Retry-After", "Link", "X-Other"), "caf\xe9 \xff")

    async def story() -> None:
        async with Scripted(always(Answer(200, strange, MANIFEST))) as server:
            registry = registry_at(server)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            for status, headers in ((401, {"WWW-Authenticate": "\xe9"}), (302, {"Location": "http://\xe9/"})):
                server.script = always(Answer(status, {**strange, **headers}))
                with pytest.raises(UpstreamError):
                    await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "host", ["xn--a", "a_b", "-", "..", "1.2.3.4.5", "0x7f.1", "%31", "a" * 300, "[v1.x]", "[::1%25lo]"]
)
def test_strange_hosts_in_redirects_are_upstream_errors(host: str) -> None:
    """No foreign exception leaves, whoever refuses them."""

    async def story() -> None:
        async with Scripted(always(Answer(302, {"Location": f"http://{host}:9/"}))) as server:
            registry = registry_at(server, limits=QUICK)
            with pytest.raises(UpstreamError):
                await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())

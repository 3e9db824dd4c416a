"""A server that says exactly what a test tells it to, on the test's own event loop.

One request a connection. What it was asked is kept, so that a test can count and look at headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import Anonymous, CredentialSettings, UpstreamLimits, UpstreamSettings
from sluice.wire.address import parse_upstream

NOBODY = Anonymous()
APP = Repository("team/app")
CONFIG = b"{}"
BLOB = bytes(range(256)) * 4096
BLOB_DIGEST = Digest.of(BLOB)
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":'
    b'"application/vnd.oci.image.config.v1+json","digest":"' + str(Digest.of(CONFIG)).encode() + b'","size":2},'
    b'"layers":[]}'
)
MANIFEST_DIGEST = Digest.of(MANIFEST)
MANIFEST_HEADERS = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(MANIFEST_DIGEST)}
ACCEPT_TURNS = 10  # of the loop, from a connection to the first step of its task
QUICK = UpstreamLimits(connect_s=2.0, head_s=0.4, idle_s=0.4, backoff_s=0.001, backoff_max_s=2.0)
"""For servers that are meant to be waited for in vain."""
STEADY = UpstreamLimits(backoff_s=0.001)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """``length``: what ``Content-Length`` says, None for the truth; ``chunked`` says nothing. ``cut``: the connection
    is reset after the body; ``stall``: it is left open, silent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    chunked: bool = False
    cut: bool = False
    stall: bool = False


Script = Callable[[Asked], Answer | Awaitable[Answer]]


class Scripted:
    """``script`` answers every request. ``asked`` lists them, ``gone`` is set when a client leaves a stalled answer."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.gone = asyncio.Event()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.transports: list[asyncio.Transport] = []

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    def count(self, method: str, path: str) -> int:
        return sum(1 for asked in self.asked if (asked.method, asked.path) == (method, path))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Noted(self), "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        # A connection that is accepted while its server closes is dropped without being closed (CPython 3.11).
        asyncio.get_running_loop().remove_reader(self._server.sockets[0].fileno())
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self.transports:  # closing waits for a client that does not read
            if not transport.is_closing() or transport.get_write_buffer_size():
                transport.abort()
        await asyncio.sleep(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._exchange(reader, writer)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await _read(reader)
        self.asked.append(asked)
        answer = self.script(asked)
        answer = await answer if isinstance(answer, Awaitable) else answer
        if answer.status == 0:
            await self._stall(reader)
            return
        writer.write(_head(answer))
        body = b"" if asked.method == "HEAD" else answer.body
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
            await writer.drain()
        if answer.stall:
            await self._stall(reader)
        elif answer.cut:
            await asyncio.sleep(0.05)  # or the reset would overtake the body
            found = writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif answer.chunked and asked.method != "HEAD":
            writer.write(b"0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _stall(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        self.gone.set()


class _Noted(asyncio.StreamReaderProtocol):
    """Tells its server of every transport, also of those whose task never begins."""

    def __init__(self, server: Scripted) -> None:
        super().__init__(asyncio.StreamReader(), server.serve)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._server.transports.append(transport)
        super().connection_made(transport)


def _head(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} Scripted", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.chunked:
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append(f"Content-Length: {len(answer.body) if answer.length is None else answer.length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return Asked(method, parts.path, parse_qs(parts.query), headers, body)


def registry_at(
    *servers: Scripted | str,
    limits: UpstreamLimits = STEADY,
    credentials: CredentialSettings = NOBODY,
    prefix: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> RemoteRegistry:
    """The first is the upstream, the others its mirrors."""
    urls = [server if isinstance(server, str) else server.url() + prefix for server in servers]
    first, *others = [parse_upstream(url) for url in urls]
    return RemoteRegistry(UpstreamSettings("test", first, tuple(others), credentials, limits=limits), clock)


def always(answer: Answer) -> Script:
    """The same answer to everything."""
    return lambda asked: answer


def plain(asked: Asked) -> Answer:
    """A registry with one image, which knows ranges."""
    kind, _, name = asked.path.rpartition("/")
    if kind.endswith("/manifests") and name in {"v1", str(MANIFEST_DIGEST)}:
        return Answer(200, MANIFEST_HEADERS, MANIFEST)
    if kind.endswith("/blobs") and name == str(BLOB_DIGEST):
        start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if not start:
            return Answer(body=BLOB)
        if start >= len(BLOB):
            return Answer(416, {"Content-Range": f"bytes */{len(BLOB)}"})
        return Answer(206, {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}, BLOB[start:])
    return Answer(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}')


async def content(registry: RemoteRegistry, offset: int = 0, piece: int = 300_000) -> bytes:
    """The whole blob from ``offset``, piece by piece."""
    blob = await registry.open_blob(APP, BLOB_DIGEST, offset)
    found = []
    try:
        while data := await blob.read_next(piece):
            found.append(data)
    finally:
        blob.close()
    return b"".join(found)

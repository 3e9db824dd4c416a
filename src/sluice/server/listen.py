"""Listeners: Granian servers embedded in our event loop, one per address.

A certificate is replaced by starting a second server on the same address (SO_REUSEPORT) and letting the first one
finish what it has: no transfer is cut, and a certificate that cannot be loaded never reaches the server library, which
would end the process over it. Before the first one stops, it gets no new connections (``handover``), and asks the
clients of kept ones to leave (``Connection: close``, RFC 9112 section 9.6): one that is closed while a request is on
its way loses that request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sluice.server import allocator  # isort: skip  # before granian
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from sluice.errors import ConfigInvalid
from sluice.server import handover
from sluice.server.exchange import HEAD_BYTES, Message, Receive, Scope, Send

log = logging.getLogger("sluice.server")
log.debug("allocator options: %s", allocator.JEMALLOC_OPTIONS)

ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]
START_S = 10.0
RUNTIME_THREADS = 2
LOOK_S = 0.01
RETIRE_S = 2.0  # how long a replaced server finishes handshakes and asks its clients to leave before it stops
CONNECTION_BUFFER_BYTES = 128 * 1024
"""What the server library may hold for one connection each way. A body comes to the application in pieces of this size,
each of which is a walk through three threads: with half of it, pushes are a third slower."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files that have been validated; ``client_ca`` demands client certificates from that CA."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to listen. ``connections`` bounds open connections, ``header_idle_s`` the wait for a request."""

    name: str
    host: str
    port: int
    tls: Tls | None
    connections: int
    header_idle_s: float

    @property
    def url(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class Door:
    """The application as one server of the library calls it. ``leave`` asks the clients behind it to come anew."""

    __slots__ = ("_answer", "_application")

    def __init__(self, application: ASGIApplication) -> None:
        self._application = application
        self._answer = application

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request."""
        return self._answer(scope, receive, send)

    def leave(self) -> None:
        """From now on each answer over HTTP/1 is the last one of its connection. HTTP/2 has GOAWAY for that."""
        self._answer = self._answer_last

    async def _answer_last(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["http_version"].startswith("1"):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._application(scope, receive, send_last)


@dataclass(frozen=True, slots=True)
class Running:
    """One server of the library and the task that it runs in."""

    server: Server
    door: Door
    task: asyncio.Task[None]


class Listener:
    """One address that serves one ASGI application."""

    def __init__(self, endpoint: Endpoint, application: ASGIApplication) -> None:
        self.endpoint = endpoint
        self._application = application
        self._current: Running | None = None
        self._retired: set[Running] = set()

    async def start(self) -> None:
        """Bind and serve; raises ConfigInvalid where the address cannot be had."""
        _probe(self.endpoint)
        self._launch()
        async with asyncio.timeout(START_S):
            while not await self._answers():  # noqa: ASYNC110 - the server library has no event for it
                await asyncio.sleep(LOOK_S)
        log.info("%s listens on %s", self.endpoint.name, self.endpoint.url)

    def _launch(self) -> None:
        door = Door(self._application)
        server = _granian(self.endpoint, door)
        task = asyncio.get_running_loop().create_task(server.serve(), name=f"listener-{self.endpoint.name}")
        self._current = Running(server, door, task)

    async def _answers(self) -> bool:
        if self._current is not None and self._current.task.done():
            await self._current.task
            raise ConfigInvalid(f"{self.endpoint.name}: the server on {self.endpoint.url} ended while starting")
        try:
            _, writer = await asyncio.open_connection(_reachable(self.endpoint.host), self.endpoint.port)
        except OSError:
            return False
        writer.close()
        return True

    async def renew(self, tls: Tls) -> None:
        """Serve new connections with other certificates; what runs on the old ones finishes. One call at a time."""
        old, host, port = self._current, self.endpoint.host, self.endpoint.port
        assert old is not None
        self.endpoint = replace(self.endpoint, tls=tls)
        before = await asyncio.to_thread(handover.count, host, port)
        await asyncio.to_thread(handover.prefer, host, port, before)
        self._launch()
        self._retired.add(old)
        old.task.add_done_callback(lambda _: self._retired.discard(old))
        await self._count_to(before + 1)
        old.door.leave()
        await asyncio.sleep(RETIRE_S)
        old.server.stop()  # type: ignore[no-untyped-call]
        await self._count_to(before)
        log.info("%s renewed its certificates", self.endpoint.name)

    async def _count_to(self, sockets: int) -> None:
        """Wait until so many listen on the address: places in the kernel's group are counted from the first one."""
        async with asyncio.timeout(START_S):
            host, port = self.endpoint.host, self.endpoint.port
            while await asyncio.to_thread(handover.count, host, port) != sockets:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        """Stop accepting and wait until every transfer has ended; the caller bounds the wait."""
        if self._current is None:
            return
        running = {self._current, *self._retired}
        for one in running:
            one.server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait({one.task for one in running})


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a lookup, not a bind


def _probe(endpoint: Endpoint) -> None:
    """The server library ends the process where it cannot bind; ask first."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
            probe.listen(1)
        except (OSError, UnicodeError) as error:
            raise ConfigInvalid(
                f"{endpoint.name}: cannot listen on {endpoint.host}:{endpoint.port} ({error}); choose another address"
                " or end what uses it"
            ) from None


def _granian(endpoint: Endpoint, application: ASGIApplication) -> Server:
    tls = endpoint.tls
    return Server(
        application,
        address=endpoint.host,
        port=endpoint.port,
        interface=Interfaces.ASGINL,
        runtime_threads=RUNTIME_THREADS,
        blocking_threads=1,
        http=HTTPModes.auto,
        websockets=False,
        backlog=max(1024, min(endpoint.connections, 65535)),
        backpressure=endpoint.connections,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(endpoint.header_idle_s * 1000), max_buffer_size=CONNECTION_BUFFER_BYTES
        ),
        http2_settings=HTTP2Settings(max_headers_size=HEAD_BYTES, max_send_buffer_size=CONNECTION_BUFFER_BYTES),
        log_enabled=False,
        ssl_cert=tls.certificate if tls else None,
        ssl_key=tls.key if tls else None,
        ssl_ca=tls.client_ca if tls else None,
        ssl_client_verify=bool(tls and tls.client_ca),
        ssl_protocol_min=SSLProtocols.tls12,
    )

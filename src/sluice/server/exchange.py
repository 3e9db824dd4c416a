"""One request and its response: the only place that knows ASGI's messages.

ASGI was chosen over Granian's RSGI because its ``send`` waits for a slow reader (bounded memory), its ``receive`` tells
a body that ended from one that broke off, and it hands over the raw path. See docs/architecture.md, "Decisions".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sluice.errors import BodyTooLarge, HeadTooLarge, RequestTimeout, SizeInvalid
from sluice.oci.reference import Repository
from sluice.server.access import Principal
from sluice.server.wiring import Wiring
from sluice.store.local import LocalStore
from sluice.wire.query import Query, parse_query
from sluice.wire.route import Route

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")
SERVER = (b"server", b"sluice")
_BODY_HEADERS = {b"content-length", b"content-type"}
SMALL_BODY_BYTES = 64 * 1024
"""A body of this size is worth reading to keep the connection."""
SMALL_BODY_S = 1.0
LINGER_BYTES = 64 * 1024 * 1024
"""How much of a refused body is read away so that the refusal arrives."""
LINGER_S = 10.0
DISCARD_IDLE_S = 1.0
"""A client that sends nothing for so long is waiting for the answer."""
HEAD_BYTES = 64 * 1024
"""Names and values of a request's header fields; the server library bounds the whole head, less tightly."""


class ClientGone(Exception):
    """The client ended the connection before the exchange was over."""


class Exchange:
    """A request being answered. ``status`` is 0 until the response has started; ``sent`` counts body bytes.

    ``wiring`` is the one that was current when the request began. ``route`` has the repository's name here, ``asked``
    the one in the path. ``marks`` are the headers that say where the answer comes from.
    """

    __slots__ = (
        "_headers",
        "_query",
        "_receive",
        "_send",
        "asked",
        "body_ended",
        "error_headers",
        "idle_s",
        "marks",
        "method",
        "principal",
        "route",
        "scope",
        "sent",
        "status",
        "wiring",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_s: float) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.idle_s = idle_s
        self.route: Route
        self.asked: Repository
        self.wiring: Wiring
        self.marks: Headers = []
        self.principal: Principal
        self.status = 0
        self.sent = 0
        self.body_ended = False
        self.error_headers: Headers = []
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] | None = None
        self._query: Query | None = None

    @property
    def sink(self) -> LocalStore:
        """Where this request writes; it has been refused where there is none."""
        assert self.wiring.sink is not None
        return self.wiring.sink

    def check_head(self) -> None:
        """Raise HeadTooLarge beyond ``HEAD_BYTES``."""
        size = sum(len(name) + len(value) for name, value in self.scope["headers"])
        if size > HEAD_BYTES:
            raise HeadTooLarge(f"the header fields have {size} bytes; at most {HEAD_BYTES} are allowed")

    def header(self, name: bytes) -> bytes | None:
        """The value of a header by its lower-case name; the last one where it came twice."""
        if self._headers is None:
            self._headers = dict(self.scope["headers"])
        return self._headers.get(name)

    def text_header(self, name: bytes) -> str | None:
        """The same as text; HTTP's octets are read as Latin-1 (RFC 9110 section 5.5)."""
        value = self.header(name)
        return None if value is None else value.decode("latin-1")

    @property
    def query(self) -> Query:
        """The parsed query string; raises RequestInvalid."""
        if self._query is None:
            self._query = parse_query(self.scope["query_string"])
        return self._query

    @property
    def origin(self) -> str:
        """``scheme://host[:port]`` as the client addressed us."""
        host = self.text_header(b"host") or "localhost"
        return f"{self.scope['scheme']}://{host}"

    @property
    def content_length(self) -> int | None:
        """The announced body length in bytes; the server library has refused malformed ones."""
        value = self.header(b"content-length")
        if value is None:
            return None
        if not value.isdigit():
            raise SizeInvalid(f"Content-Length {value.decode('latin-1')!r} is not a number")
        return int(value)

    async def body(self) -> AsyncIterator[bytes]:
        """The request body as it comes. Raises ClientGone where it breaks off, RequestTimeout where it stalls."""
        while not self.body_ended:
            message = await self._next()
            if message["type"] != "http.request":
                self.body_ended = True
                raise ClientGone
            self.body_ended = not message.get("more_body", False)
            data: bytes = message.get("body", b"")
            if data:
                yield data

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(self.idle_s):
                return await self._receive()
        except TimeoutError:
            raise RequestTimeout(f"no byte of the body came for {self.idle_s:g} s (limits.body_idle_s)") from None

    async def read_body(self, limit: int, limit_name: str) -> bytes:
        """The whole body in memory; raises BodyTooLarge beyond ``limit`` bytes."""
        announced = self.content_length
        if announced is not None and announced > limit:
            raise BodyTooLarge(f"the body has {announced} bytes; {limit_name} allows {limit}")
        parts = bytearray()
        async for data in self.body():
            parts += data
            if len(parts) > limit:
                raise BodyTooLarge(f"the body has more than the {limit} bytes that {limit_name} allows")
        return bytes(parts)

    async def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response to a request whose body may not have been read.

        A small body is read away first, and the connection stays. Before a large one the answer goes out at once but
        for its last byte, and what the client still sends is read away, within bounds: closing a socket that has unread
        bytes resets it, and the reset can overtake the answer (RFC 9112 section 9.6). The last byte waits because the
        server library closes as soon as the answer is whole.
        """
        if self.body_ended or self.method in {"GET", "HEAD"} or not self._framed():
            await self.respond(status, headers, body)
            return
        waits = self.header(b"expect") is not None  # for 100 Continue (RFC 9110 section 10.1.1), which it will not get
        if not waits and self._is_small():
            await self._discard(SMALL_BODY_BYTES, SMALL_BODY_S)
        if not self.body_ended and self._is_http1():
            headers = [*headers, (b"connection", b"close")]
        if self.body_ended or waits:
            await self.respond(status, headers, body)
            return
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.send(body[:-1], more=True)
        await self._discard(LINGER_BYTES, LINGER_S)
        await self.send(body[-1:], more=False)

    def _is_http1(self) -> bool:
        return bool(self.scope["http_version"].startswith("1"))

    def _framed(self) -> bool:
        """Whether a body may follow the head; over HTTP/1 its framing says so (RFC 9112 section 6.3)."""
        framed = self.header(b"transfer-encoding") is not None or self.header(b"content-length") not in {None, b"0"}
        return framed or not self._is_http1()

    def _is_small(self) -> bool:
        try:
            return (self.content_length or 0) <= SMALL_BODY_BYTES
        except SizeInvalid:
            return False

    async def _discard(self, limit: int, within_s: float) -> None:
        """Read the body away: up to its end, ``limit`` bytes, ``within_s`` seconds, or a pause of DISCARD_IDLE_S."""
        self.idle_s = DISCARD_IDLE_S
        try:
            async with asyncio.timeout(within_s):
                async for data in self.body():
                    limit -= len(data)
                    if limit < 0:
                        return
        except (TimeoutError, ClientGone, RequestTimeout):
            return

    async def start(self, status: int, headers: Headers) -> None:
        """Send the response's head."""
        self.status = status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [SERVER, API_VERSION, *self.marks, *headers]}
        )

    async def send(self, data: bytes, *, more: bool) -> None:
        """Send a part of the body; waits while the reader is slow."""
        self.sent += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole response; for HEAD the body's length is told and the body left out."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))] if status != 204 else headers)
        await self.send(b"" if self.method == "HEAD" else body, more=False)

    async def respond_unmodified(self, headers: Headers) -> None:
        """304 with the headers that a 200 would have had, less those about a body (RFC 9110 section 15.4.5)."""
        await self.start(304, [(name, value) for name, value in headers if name not in _BODY_HEADERS])
        await self.send(b"", more=False)

    async def gone(self) -> None:
        """Return once the client has left (or the response is over). For a request whose body has been read."""
        while (await self._receive())["type"] == "http.request":
            pass

"""One request and its answer, in our own terms: the only module that knows pyreqwest.

``transport`` sends through ``Clients`` and gets a ``Response``, whose body is read at the reader's speed. Three of the
library's habits shape this module (0.15):

- It fills a buffer before it shows the head, unless the buffer's limit is 0; a slow body would delay the head.
- A task that is cancelled while it waits for a head leaves the request running in the library until the server
  answers. ``pause_s`` (the library's read timeout) ends it; that of a small answer ends after ``head_s + idle_s``.
- That read timeout also runs while nobody reads, so it has to be long; ``head_s`` and ``idle_s`` are kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    ConnectError,
    DecodeError,
    DetailedPyreqwestError,
    PyreqwestError,
)
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response as ForeignResponse

import sluice
from sluice.errors import (
    ConfigInvalid,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTlsFailed,
    UpstreamUnreachable,
)
from sluice.upstream.instance import via
from sluice.upstream.redirect import Target
from sluice.upstream.settings import UpstreamLimits, UpstreamSettings
from sluice.upstream.trust import Trust

USER_AGENT = f"sluice/{sluice.__version__}"
STREAM_WINDOW_BYTES = 256 << 10
"""What HTTP/2 sends ahead of one reader. The connection's window holds that of every stream, so that readers who pause
do not hold up the others."""
DISCARD_BYTES = 16 << 10
"""A body that nobody wants is read up to here, so that its connection can be used again."""
DISCARD_S = 1.0
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_TLS_WORDS = ("certificate", "fatal alert", "corrupt message", "handshake", "tls", "no close_notify")
_CLOSE_NOTIFY = "without sending TLS close_notify"
_SENDING = "(SendRequest)"
"""What the library calls a connection that stood and broke before the head; its exception is the same as for one that
never stood."""


@dataclass(frozen=True, slots=True)
class Request:
    """``authorization`` goes to ``target`` only, never along with a redirect to another host. ``small``: the whole
    answer must come within ``head_s + idle_s``. ``form`` is a POST's body."""

    method: str
    target: Target
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    small: bool = True
    form: Mapping[str, str] | None = field(default=None, repr=False)


class Response:
    """The head of an answer, and its body for as long as it is open. ``target`` is who answered, after redirects."""

    def __init__(self, request: StreamRequest, response: ForeignResponse, target: Target, idle_s: float) -> None:
        self._request: StreamRequest | None = request
        self._response = response
        self._idle_s = idle_s
        self._rest = memoryview(b"")
        self._ended = False
        self._deadline: asyncio.Timeout | None = None
        self._on_close: list[Callable[[], None]] = []
        self.status = response.status
        self.target = target

    def header(self, name: str) -> str | None:
        """The first value; None where there is none in ASCII."""
        return next(iter(self.headers(name)), None)

    def headers(self, name: str) -> list[str]:
        """All values; none where one of them is not ASCII, which the library refuses to show."""
        try:
            return self._response.get_header_all(name)
        except ValueError:
            return []

    @property
    def length(self) -> int | None:
        """``Content-Length`` in bytes, None where there is none; the library keeps the body to it."""
        text = self.header("content-length") or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def on_close(self, action: Callable[[], None]) -> None:
        """Have ``action`` called once when the body is done with."""
        if self._request is None:
            action()
        else:
            self._on_close.append(action)

    async def read(self, limit: int) -> bytes:
        """The next bytes as they come, up to ``limit``; empty at the end of the body.

        Raises UpstreamTimeout or UpstreamFailed; then, and where it is cancelled, the response is closed.
        """
        while not self._rest:
            if self._request is None:
                if self._ended:
                    return b""
                raise UpstreamFailed(f"the transfer from {self.target.shown} has been closed")
            chunk = await self._next_chunk()
            if chunk is None:
                self._ended = True
                self.close()
                return b""
            if 0 < len(chunk) <= limit:
                return chunk
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:limit], self._rest[limit:]
        return bytes(piece)

    async def _next_chunk(self) -> bytes | None:
        deadline = asyncio.timeout(self._idle_s)
        try:
            async with deadline:
                self._deadline = deadline
                try:
                    chunk = await self._response.body_reader.read_chunk()
                finally:
                    self._deadline = None
        except TimeoutError:
            if self._request is None:
                raise UpstreamFailed(f"the transfer from {self.target.shown} has been closed") from None
            self.close()
            raise UpstreamTimeout(
                f"{self.target.shown} sent nothing for {self._idle_s:g} s in the middle of a body"
            ) from None
        except PyreqwestError as error:
            self.close()
            raise _body_error(error, self.target) from None
        except BaseException:
            self.close()  # a chunk may have been lost
            raise
        return None if chunk is None else chunk.to_bytes()

    async def whole(self, limit: int) -> bytes:
        """The whole body, then closed; raises UpstreamInvalid where it has more than ``limit`` bytes."""
        pieces, held = [], 0
        with self:
            while piece := await self.read(limit + 1 - held):
                pieces.append(piece)
                held += len(piece)
                if held > limit:
                    raise UpstreamInvalid(f"{self.target.shown} answers with more than {limit} bytes")
        return b"".join(pieces)

    async def start(self, limit: int) -> bytes:
        """Up to ``limit`` bytes of the body, then closed: for messages. Never raises an UpstreamError."""
        pieces, held = [], 0
        with self:
            try:
                while held < limit and (piece := await self.read(limit - held)):
                    pieces.append(piece)
                    held += len(piece)
            except UpstreamError:
                pass
        return b"".join(pieces)

    async def discard(self) -> None:
        """Close, keeping the connection where little is left of the body and comes at once."""
        try:
            async with asyncio.timeout(DISCARD_S):
                await self.start(DISCARD_BYTES)
        except TimeoutError:
            self.close()

    def close(self) -> None:
        """End the transfer where it goes on still; idempotent."""
        request, self._request = self._request, None
        if request is None:
            return
        self._rest = memoryview(b"")
        if self._deadline is not None:
            self._deadline.reschedule(0)  # the library would let a read that is under way wait on
        leaving = request.__aexit__(None, None, None)
        try:
            leaving.send(None)  # it ends the transfer at once, without waiting for anything
        except (StopIteration, PyreqwestError):
            pass
        finally:
            leaving.close()
        for action in self._on_close:
            action()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Clients:
    """The library's clients for one upstream and its mirrors: connections, trust, proxy.

    Blobs go over HTTP/1.1, everything else over HTTP/2 where it is offered: one transfer was measured at 980 MB/s
    against 540, a reader who pauses costs the kernel's buffers alone, and a drop ends one transfer and not all. The
    client certificate is shown to the upstream's own addresses only.
    """

    def __init__(self, settings: UpstreamSettings, trust: Trust) -> None:
        self._limits = settings.limits
        self._open: set[Response] = set()
        kinds = [(own, small) for own in (True, False) for small in (True, False)]
        try:
            self._clients = {(own, small): _client(settings, trust, own=own, small=small) for own, small in kinds}
        except (PyreqwestError, ValueError) as error:
            raise ConfigInvalid(
                f"upstream {settings.name}: its CA, client certificate or proxy cannot be used: {_reason(error)}"
            ) from None

    async def send(self, request: Request, *, own: bool) -> Response:
        """Send and wait for the head; raises UpstreamUnreachable, UpstreamTlsFailed, UpstreamTimeout, UpstreamInvalid.

        ``own``: whether the target is the upstream itself, so that it may see the client certificate.
        """
        limits, shown = self._limits, request.target.shown
        try:
            prepared = self._prepared(request, self._clients[own, request.small])
        except (PyreqwestError, ValueError) as error:
            raise UpstreamInvalid(f"{shown} is no URL that could be asked: {_reason(error)}") from None
        try:
            async with asyncio.timeout(limits.head_s):
                response = await prepared.__aenter__()
        except TimeoutError as error:
            raise _head_timeout("(Connect)" in str(error), limits, shown) from None
        except PyreqwestError as error:
            raise _head_error(error, shown) from None
        answer = Response(prepared, response, request.target, limits.idle_s)
        self._open.add(answer)
        answer.on_close(lambda: self._open.discard(answer))
        return answer

    def _prepared(self, request: Request, client: Client) -> StreamRequest:
        builder = client.request(request.method, request.target.url).streamed_read_buffer_limit(0)
        builder = builder.headers({"Accept-Encoding": "identity", "Via": via(), **request.headers})
        if request.authorization is not None:
            builder = builder.header("Authorization", request.authorization, is_sensitive=True)
        if request.form is not None:
            builder = builder.form(list(request.form.items()))
        if request.small:
            builder = builder.timeout(timedelta(seconds=self._limits.head_s + self._limits.idle_s))
        return builder.build_streamed()

    async def close(self) -> None:
        """End all transfers and connections: the library would let them go on."""
        for response in list(self._open):
            response.close()
        for client in self._clients.values():
            await client.close()


def _client(settings: UpstreamSettings, trust: Trust, *, own: bool, small: bool) -> Client:
    limits = settings.limits
    builder = ClientBuilder().follow_redirects(False).referer(False).default_cookie_store(False)
    builder = builder.gzip(False).brotli(False).zstd(False).deflate(False).user_agent(USER_AGENT).no_proxy()
    builder = builder.connect_timeout(timedelta(seconds=limits.connect_s))
    builder = builder.read_timeout(timedelta(seconds=limits.pause_s))
    builder = builder.http2(small).http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
    builder = builder.http2_initial_connection_window_size(limits.small_connections * STREAM_WINDOW_BYTES)
    if settings.proxy is not None:
        if urlsplit(settings.proxy).scheme not in PROXY_SCHEMES:
            raise ValueError(f"the proxy is not one of {', '.join(PROXY_SCHEMES)}")
        proxy = ProxyBuilder.all(settings.proxy).no_proxy(",".join(settings.no_proxy) or None)
        builder = builder.proxy(proxy)
    if trust.ca_pem is not None:
        builder = builder.add_root_certificate_pem(trust.ca_pem)
    if own and trust.identity_pem is not None:
        builder = builder.identity_pem(trust.identity_pem)
    return builder.build()


def _reason(error: Exception) -> str:
    """The innermost cause's text: the outer ones only repeat the URL."""
    causes = _causes(error)
    return causes[-1] if causes else str(error.args[0] if error.args else error)


def _causes(error: Exception) -> list[str]:
    """From the outermost to the innermost."""
    causes = (error.details.get("causes") or []) if isinstance(error, DetailedPyreqwestError) else []
    return [cause["message"] for cause in causes]


def _head_timeout(connecting: bool, limits: UpstreamLimits, shown: str) -> UpstreamError:
    passed = f"connect within {limits.connect_s:g} s" if connecting else f"answer within {limits.head_s:g} s"
    timeout = UpstreamTimeout(f"{shown} did not {passed}")
    # Where connecting may take longer than this, nobody knows whether a connection stood.
    timeout.connected = not connecting and limits.head_s > limits.connect_s
    return timeout


def _head_error(error: PyreqwestError, shown: str) -> UpstreamError:
    reason = _reason(error)
    if isinstance(error, ConnectError):
        connected = any(_SENDING in cause for cause in _causes(error))
        hung_up = connected and _CLOSE_NOTIFY in reason  # over TLS as without: no more than the end of a connection
        if not hung_up and any(word in reason.lower() for word in _TLS_WORDS):
            return UpstreamTlsFailed(f"TLS with {shown} failed: {reason}")
        broken = UpstreamUnreachable(f"{shown} cannot be reached: {reason}")
        broken.connected = connected
        return broken
    if isinstance(error, DecodeError):
        return UpstreamInvalid(f"{shown} answers with what is not HTTP: {reason}")
    broken = UpstreamUnreachable(f"{shown} cannot be asked: {reason}")
    broken.connected = True
    return broken


def _body_error(error: PyreqwestError, target: Target) -> UpstreamError:
    return UpstreamFailed(f"{target.shown} broke off in the middle of a body: {_reason(error)}")

"""A client that costs little: one kept connection, requests sent as prepared bytes, responses read by length.

Two cores carry client and server alike, so what the client burns is missing from every server's figure. Used to fill
the stores before the clock starts, and by ``layers`` while it runs. It understands exactly what the registries under
test send in answer to the requests made here: HTTP/1.1 with a Content-Length or a chunked body.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.tls import CIPHER

RESPONSE_TIMEOUT_S = 120.0
HEAD_BYTES_MAX = 64 * 1024
_READ_BYTES = 64 * 1024


class BenchError(Exception):
    """A server answered what it must not, or did not answer. The run ends: figures for wrong work are none."""


@dataclass(frozen=True)
class Response:
    """Status, headers by lower-case name (the last of each), body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def location(self) -> str:
        """Path and query of the Location header; registries send it absolute or relative."""
        parts = urlsplit(self.headers["location"])
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def expect(self, *statuses: int) -> Response:
        """Itself, or BenchError where the status is none of ``statuses``."""
        if self.status not in statuses:
            raise BenchError(f"expected {statuses}, got {self.status}: {self.body[:300]!r}")
        return self


@dataclass
class Connection:
    """One kept connection to ``127.0.0.1:port``. ``authorization`` goes with each request if set."""

    port: int
    context: ssl.SSLContext | None
    authorization: str = ""
    _socket: socket.socket = field(init=False, repr=False)
    _pending: bytes = field(init=False, default=b"", repr=False)

    def __post_init__(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=RESPONSE_TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self.context.wrap_socket(plain, server_hostname="localhost") if self.context else plain

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def cipher(self) -> str:
        """What was negotiated, empty without TLS."""
        negotiated = self._socket.cipher() if isinstance(self._socket, ssl.SSLSocket) else None
        return negotiated[0] if negotiated else ""

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
        """Send one request and read its response. Raises BenchError where the server ends early."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if self.authorization:
            lines.append(f"Authorization: {self.authorization}")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return self._response(bodiless=method == "HEAD")

    def _response(self, *, bodiless: bool) -> Response:
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ", 2)[1])
        if bodiless or status in (204, 304):
            return Response(status, headers, b"")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Response(status, headers, self._chunks())
        return Response(status, headers, self._exactly(int(headers.get("content-length", "0"))))

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._until(b"\r\n").split(b";")[0], 16):
            body += self._exactly(size + 2)[:-2]
        self._until(b"\r\n")
        return body

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._pending:
            if len(self._pending) > HEAD_BYTES_MAX:
                raise BenchError(f"a response head is longer than {HEAD_BYTES_MAX} bytes")
            self._pending += self._receive()
        found, _, self._pending = self._pending.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        parts, have = [self._pending], len(self._pending)
        while have < size:
            parts.append(self._receive())
            have += len(parts[-1])
        whole = b"".join(parts)
        self._pending = whole[size:]
        return whole[:size]

    def _receive(self) -> bytes:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise BenchError("the server ended the connection before its response was complete")
        return data


def expect_cipher(connection: Connection) -> None:
    """Fail where a client process did not get the one cipher, which would skew its row."""
    if connection.cipher() != CIPHER:
        raise BenchError(f"negotiated {connection.cipher()!r}, expected {CIPHER}: is OPENSSL_CONF set?")

"""Clients that take up room: sockets that stay open and do nothing, or next to nothing."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

from sluice.testing.server import SluiceServer

MIB = 1 << 20
CONNECT_S = 30.0
SETTLE_S = 1.0
GROWTH_STEP_BYTES = 256 * 1024


def allow_sockets(count: int) -> None:
    """Let this process have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))


def open_socket(server: SluiceServer, request: bytes = b"", receive_bytes: int = 0) -> socket.socket:
    """A connection with its TLS handshake done where there is one, and ``request`` sent.

    ``receive_bytes`` bounds what the kernel takes in for a reader that does not read.
    """
    plain = socket.socket()
    if receive_bytes:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plain.settimeout(CONNECT_S)
    plain.connect(("127.0.0.1", server.port))
    sock = server.ssl_context().wrap_socket(plain, server_hostname="127.0.0.1") if server.tls else plain
    sock.sendall(request)
    return sock


@contextlib.contextmanager
def crowd(
    server: SluiceServer, count: int, request: bytes = b"", receive_bytes: int = 0
) -> Iterator[list[socket.socket]]:
    """So many open connections that have sent ``request``."""
    allow_sockets(count + 256)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open_socket(server, request, receive_bytes)) for _ in range(count)]


def request_head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request as bytes."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly ``count`` bytes, or fewer where the connection ends."""
    parts = bytearray()
    while len(parts) < count and (data := sock.recv(min(count - len(parts), MIB))):
        parts += data
    return bytes(parts)


def steady_bytes(server: SluiceServer) -> int:
    """Resident memory once it has stopped growing."""
    before = server.resident_bytes()
    while True:
        time.sleep(SETTLE_S)
        now = server.resident_bytes()
        if now - before < GROWTH_STEP_BYTES:
            return now
        before = now

"""A client of scripted upstreams that sees every octet, and whether a FIN or a RST comes behind the last."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 10.0
KEEP = "keep-alive"


@dataclass(frozen=True)
class Got:
    """A whole answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Raw:
    """All octets to the end of a connection. ``reset``: it ended with a RST."""

    head: bytes
    body: bytes
    reset: bool


def get(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Got:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        with connection.getresponse() as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            return Got(response.status, found, response.read())
    finally:
        connection.close()


def send(
    port: int, path: str, method: str = "GET", connection: str = "close", *headers: str, window: int | None = None
) -> socket.socket:
    """A connection with one request on it, nothing read; ``window`` bytes are what our kernel takes at once."""
    sock = socket.socket()
    sock.settimeout(TIMEOUT_S)
    if window is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.connect(("127.0.0.1", port))
    lines = [f"{method} {path} HTTP/1.1", "Host: upstream", f"Connection: {connection}", *headers, "", ""]
    sock.sendall("\r\n".join(lines).encode())
    return sock


def read_to_end(sock: socket.socket) -> Raw:
    """Everything until the server's FIN or RST; closes our side."""
    taken, reset = bytearray(), False
    with sock:
        try:
            while piece := sock.recv(1 << 20):
                taken += piece
        except ConnectionResetError:
            reset = True
    head, _, body = bytes(taken).partition(b"\r\n\r\n")
    return Raw(head, body, reset)


def receive(sock: socket.socket, length: int) -> bytes:
    """So many octets, whatever they are."""
    taken = b""
    while len(taken) < length:
        piece = sock.recv(length - len(taken))
        assert piece, "the connection ended"
        taken += piece
    return taken


def read_exactly(sock: socket.socket, length: int) -> bytes:
    """So many octets of a body, behind the head."""
    taken = b""
    while b"\r\n\r\n" not in taken or len(taken.partition(b"\r\n\r\n")[2]) < length:
        piece = sock.recv(1 << 16)
        assert piece, "the connection ended"
        taken += piece
    return taken.partition(b"\r\n\r\n")[2]


def is_quiet(sock: socket.socket, seconds: float = 0.15) -> bool:
    """Whether nothing comes, not even an end."""
    sock.settimeout(seconds)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(TIMEOUT_S)
    return False


@contextmanager
def no_thread_left() -> Iterator[None]:
    """The block leaves no thread behind."""
    before = set(threading.enumerate())
    yield
    assert [] == [thread for thread in threading.enumerate() if thread not in before]

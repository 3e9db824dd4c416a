"""A link of limited speed: a TCP relay in front of any server, ours or Debian's ``docker-registry``.

What it does to bytes is a frozen ``Shape``, which may be changed while connections run. It shapes what comes from the
server; what goes to it passes freely. It knows nothing of HTTP or TLS, so it can stand before either.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sluice.testing.server import free_port
from sluice.testing.upstreams.line import Line, Waited
from sluice.testing.upstreams.listening import Listener
from sluice.testing.upstreams.pacer import Pacer

PIECE_BYTES = 256 * 1024
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link does to the bytes that come from the server; by default nothing.

    ``bytes_per_s`` limits each connection, ``total_bytes_per_s`` all together. A connection that has had ``cut_after``
    octets is ended before the next one, with a FIN or with ``rst`` a RST; one that has had ``stall_after`` stops there
    until the shape is changed. ``times``: how many connections that happens to; None: all.
    """

    bytes_per_s: float | None = None
    total_bytes_per_s: float | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    rst: bool = False
    times: int | None = None


class _Script:
    """A shape in force: the pace that is shared, and the times that are left."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.total = None if shape.total_bytes_per_s is None else Pacer(shape.total_bytes_per_s)
        self._left = shape.times
        self._lock = threading.Lock()

    @property
    def armed(self) -> bool:
        """Whether it still cuts and stalls."""
        return self._left != 0

    def take(self) -> bool:
        """Use up one of the times; False where none is left."""
        with self._lock:
            if self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            return True


class _Link:
    """One connection through the relay: both its ends, and how it is to end when we end it."""

    def __init__(self, client: Line, target: socket.socket) -> None:
        self.client = client
        self.target = target
        self.sent = 0
        self.script: _Script | None = None
        self.pacer: Pacer | None = None
        self.stalled = False
        self.ending = False
        self.rst = False

    def obey(self, script: _Script) -> None:
        """Take over ``script`` if it is new to us."""
        if script is not self.script:
            rate = script.shape.bytes_per_s
            self.script, self.stalled = script, False
            self.pacer = None if rate is None else Pacer(rate)

    def end(self, *, rst: bool) -> None:
        """End it from any thread: the pump finds the end of the target and then ends the client's side."""
        self.rst, self.ending = rst, True
        with contextlib.suppress(OSError):
            self.target.shutdown(socket.SHUT_RDWR)


class _Cut(Exception):
    """The client's side is to end now; a RST where ``rst``."""

    def __init__(self, *, rst: bool) -> None:
        super().__init__()
        self.rst = rst


class Relay:
    """Relays its own ``port`` to ``target_port`` on ``target_host``; a context manager.

    ``stop`` and ``start`` are the link that goes down and comes back. ``bytes_down`` counts what the clients' kernels
    took, ``bytes_up`` what the server's did.
    """

    def __init__(
        self, target_port: int, shape: Shape = Shape(), *, target_host: str = "127.0.0.1", scheme: str = "http"
    ) -> None:
        self.port = free_port()
        self.bytes_down = 0
        self.bytes_up = 0
        self._target = (target_host, target_port)
        self._scheme = scheme
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._script = _Script(shape)
        self._listener = Listener("127.0.0.1", self.port, self._serve)

    @property
    def address(self) -> str:
        """``scheme://127.0.0.1:port``, as ``--upstream`` takes it."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def shape(self) -> Shape:
        """What the link does. Setting it ends every stall and counts ``times`` anew."""
        return self._script.shape

    @shape.setter
    def shape(self, shape: Shape) -> None:
        self._script = _Script(shape)
        for line in self._listener.lines():
            line.wake()

    @property
    def connections(self) -> int:
        """How many connections have been accepted since the beginning."""
        return self._listener.accepted

    @property
    def open_connections(self) -> int:
        """How many are open now."""
        return len(self._listener.lines())

    def cut(self, *, rst: bool = False) -> None:
        """End all connections that are open; one whose client does not read, once it reads again."""
        with self._lock:
            for link in self._links:
                link.end(rst=rst)
                link.client.wake()

    def start(self) -> Self:
        """Listen; connections are accepted when it returns."""
        self._listener.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection, and wait for the threads; idempotent."""
        self._listener.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self, client: Line, number: int) -> None:
        """One connection, to its end. The listener closes the client's line afterwards."""
        try:
            target = socket.create_connection(self._target, CONNECT_S)
        except OSError:
            client.cut(rst=True)
            return
        with target:
            target.settimeout(None)
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, target)
            with self._lock:
                self._links.add(link)
            up = threading.Thread(target=self._up, args=(link,), name=f"relay-{self.port}-{number}-up", daemon=True)
            up.start()
            try:
                self._down(link)
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_WR)
                up.join()  # the client may go on sending after the server's end, until its own
            except _Cut as cut:
                link.end(rst=cut.rst)
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_RD)  # sends nothing, but ends the other thread's wait
                up.join()
                client.cut(rst=cut.rst)
            finally:
                with self._lock:
                    self._links.discard(link)

    def _up(self, link: _Link) -> None:
        """Client to server, until the client's end, which is passed on."""
        view = memoryview(bytearray(PIECE_BYTES))
        try:
            while length := link.client.sock.recv_into(view):
                link.target.sendall(view[:length])
                with self._lock:
                    self.bytes_up += length
            if not self._listener.stopping:
                link.target.shutdown(socket.SHUT_WR)
                return
        except OSError:
            pass
        link.end(rst=False)

    def _down(self, link: _Link) -> None:
        """Server to client, shaped, until the server's end. Raises _Cut for any other end."""
        view = memoryview(bytearray(PIECE_BYTES))
        while True:
            link.obey(self._script)
            most = PIECE_BYTES if link.pacer is None else link.pacer.piece(PIECE_BYTES)
            try:
                length = link.target.recv_into(view[:most])
            except OSError:
                raise _Cut(rst=True) from None
            if link.ending:
                raise _Cut(rst=link.rst)
            if not length:
                return
            self._pass(link, view[:length])

    def _pass(self, link: _Link, piece: memoryview) -> None:
        """Send ``piece`` on, up to every mark that the shape sets in it."""
        while piece:
            script = self._script
            link.obey(script)
            upto = self._next_mark(link, script)
            part = piece if upto is None else piece[: upto - link.sent]
            pacers = [pacer for pacer in (link.pacer, script.total) if pacer is not None]
            if pacers:
                now = time.monotonic()
                delay = max(pacer.reserve(len(part), now) for pacer in pacers)
                if delay and not link.client.pause(delay):
                    raise _Cut(rst=False)
            try:
                link.client.sock.sendall(part)
            except OSError:
                raise _Cut(rst=True) from None
            link.sent += len(part)
            with self._lock:
                self.bytes_down += len(part)
            piece = piece[len(part) :]

    def _next_mark(self, link: _Link, script: _Script) -> int | None:
        """Do what the marks that are reached ask for; the next one ahead."""
        shape = script.shape
        if shape.stall_after is not None and not link.stalled and link.sent >= shape.stall_after and script.take():
            link.stalled = True
            self._stall(link, script)
        if shape.cut_after is not None and link.sent >= shape.cut_after and script.take():
            raise _Cut(rst=shape.rst)
        if not script.armed:
            return None
        ahead = [mark for mark in (shape.stall_after, shape.cut_after) if mark is not None and mark > link.sent]
        return min(ahead, default=None)

    def _stall(self, link: _Link, script: _Script) -> None:
        while self._script is script:
            if self._listener.stopping or link.ending or link.client.wait(None) is Waited.LEFT:
                raise _Cut(rst=link.rst)

"""A scripted upstream registry: a real HTTP/1.1 server on a free loopback port, a thread for each connection.

Correct by default (``answers``); ``faults`` may be set before and while it runs. It notes every request with what
became of it, which is how a test knows how many times an upstream was asked.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from sluice.oci.digest import Digest
from sluice.testing.server import free_port
from sluice.testing.upstreams.answers import answer
from sluice.testing.upstreams.content import UpstreamContent
from sluice.testing.upstreams.delivery import Left, deliver
from sluice.testing.upstreams.faults import Fault
from sluice.testing.upstreams.line import Line, Waited
from sluice.testing.upstreams.listening import Listener
from sluice.testing.upstreams.matching import When, all_of, anything, gets, of_digest
from sluice.testing.upstreams.reply import Reply
from sluice.testing.upstreams.seen import (
    HEAD_BYTES_MAX,
    HeadInvalid,
    RequestHead,
    SeenRequest,
    parse_head,
    seen_request,
)
from sluice.testing.upstreams.tls import UpstreamTls

REQUESTS_MAX = 100_000
HANDSHAKE_S = 10.0
WAIT_S = 10.0
_END = b"\r\n\r\n"


class _Armed:
    """A fault with the times that are left of it."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._left = fault.times

    def apply(self, request: SeenRequest, reply: Reply) -> Reply:
        if self._left == 0 or not self._fault.when(request):
            return reply
        spoilt = self._fault.apply(request, reply)
        if spoilt is None:
            return reply
        if self._left is not None:
            self._left -= 1
        return spoilt


class UpstreamServer:
    """Serves ``content``, with TLS where ``tls`` is given; a context manager.

    The port is its own for good: ``stop`` and ``start`` are the upstream that goes and comes back.
    """

    def __init__(
        self,
        content: UpstreamContent,
        *,
        tls: UpstreamTls | None = None,
        faults: Sequence[Fault] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.content = content
        self.tls = tls
        self.host = host
        self.port = free_port()
        self._changed = threading.Condition()
        self._faults: tuple[Fault, ...] = ()
        self._armed: list[_Armed] = []
        self._script = 0
        self._seen: deque[SeenRequest] = deque(maxlen=REQUESTS_MAX)
        self._listener = Listener(host, self.port, self._serve)
        self.faults = tuple(faults)

    @property
    def address(self) -> str:
        """``http://host:port`` or ``https://host:port``, as ``--upstream`` takes it."""
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What spoils the replies. Setting it arms every fault anew, and lets the replies go on that are stalled."""
        with self._changed:
            return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._changed:
            self._faults = tuple(faults)
            self._armed = [_Armed(fault) for fault in faults]
            self._script += 1
        for line in self._listener.lines():
            line.wake()

    @property
    def requests(self) -> list[SeenRequest]:
        """All requests since the beginning, the last ``REQUESTS_MAX`` at most, in the order in which they came."""
        with self._changed:
            return [*self._seen]

    @property
    def connections(self) -> int:
        """How many connections have been accepted since the beginning."""
        return self._listener.accepted

    @property
    def open_connections(self) -> int:
        """How many are open now."""
        return len(self._listener.lines())

    def seen(self, when: When = anything) -> list[SeenRequest]:
        """The requests that meet ``when``."""
        return [request for request in self.requests if when(request)]

    def gets(self, digest: Digest | str) -> int:
        """How many GETs named ``digest``."""
        return len(self.seen(all_of(gets, of_digest(digest))))

    def forget(self) -> None:
        """Begin ``requests`` anew."""
        with self._changed:
            self._seen.clear()

    def wait_for(self, claim: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Return once ``claim`` holds; asked again whenever a request comes or ends. AssertionError at the limit."""
        with self._changed:
            assert self._changed.wait_for(claim, timeout_s), f"not within {timeout_s} s: {[*self._seen]}"

    def wait_idle(self, timeout_s: float = WAIT_S) -> None:
        """Return once every request that came has ended."""
        self.wait_for(lambda: all(request.ended is not None for request in self._seen), timeout_s)

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

    def _serve(self, line: Line, number: int) -> None:
        """One connection, to its end. The listener closes the line afterwards."""
        with contextlib.suppress(OSError, Left):  # a handshake that fails, and clients that leave, are their business
            if self.tls is not None:
                line.sock.settimeout(HANDSHAKE_S)
                wrapped = self.tls.context.wrap_socket(line.sock, server_side=True, do_handshake_on_connect=False)
                line.sock = wrapped  # before the handshake, so that stopping ends it
                if self._listener.stopping:
                    return
                wrapped.do_handshake()
                wrapped.settimeout(None)
            rest = b""
            while True:
                raw, rest = _receive_head(line.sock, rest)
                if raw is None:
                    break
                came = time.monotonic()
                try:
                    head = parse_head(raw)
                    body, rest = _receive_body(line.sock, rest, head.body_bytes)
                except HeadInvalid:
                    line.sock.sendall(Reply(400).head(close=True))
                    break
                request = seen_request(head, body, came, self.address, number)
                if not self._exchange(line, head, request):
                    return
            line.finish()

    def _exchange(self, line: Line, head: RequestHead, request: SeenRequest) -> bool:
        """Answer one request; whether the connection goes on."""
        with self._changed:
            self._seen.append(request)
            script = self._script
            self._changed.notify_all()
            reply = answer(self.content, request)
            for armed in self._armed:
                reply = armed.apply(request, reply)
        try:
            return deliver(line, request, reply, lambda line: self._stay(line, script), close=not head.keeps_alive)
        except (OSError, Left):
            request.left_early = not self._listener.stopping
            raise
        finally:
            with self._changed:
                request.ended = time.monotonic()
                self._changed.notify_all()

    def _stay(self, line: Line, script: int) -> bool:
        """Stall while the faults are those of ``script``; False where the client left or the server stops."""
        while True:
            with self._changed:
                if self._script != script:
                    return True
            if self._listener.stopping or line.wait(None) is Waited.LEFT:
                return False


def _receive_head(sock: socket.socket, rest: bytes) -> tuple[bytes | None, bytes]:
    """The next head and what came behind it; None where the client has closed or sends no end of it."""
    while _END not in rest:
        piece = sock.recv(HEAD_BYTES_MAX) if len(rest) < HEAD_BYTES_MAX else b""
        if not piece:
            return None, b""
        rest += piece
    raw, _, rest = rest.partition(_END)
    return raw, rest


def _receive_body(sock: socket.socket, rest: bytes, length: int) -> tuple[bytes, bytes]:
    while len(rest) < length:
        piece = sock.recv(length - len(rest))
        if not piece:
            raise Left
        rest += piece
    return rest[:length], rest[length:]

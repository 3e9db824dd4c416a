"""One end of a TCP connection, with what a misbehaving server needs: waiting for its client to leave, FIN, RST.

``server`` and ``shaped`` give one to each connection. A line belongs to one thread; ``wake`` and ``sever`` may be
called from others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import threading
import time
from enum import Enum

LINGER_RESET = struct.pack("ii", 1, 0)
SETTLE_S = 5.0
SETTLE_STEP_S = 0.002
_LEAVING = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Waited(Enum):
    """Why a wait ended."""

    LEFT = "left"
    WOKEN = "woken"
    ELAPSED = "elapsed"


class Line:
    """``sock`` is connected and blocking, with or without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lock = threading.Lock()
        self._closed = False
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wake(self) -> None:
        """End the wait that runs, or else the next one."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._woken, 1)

    def sever(self) -> None:
        """End the connection both ways under its thread, whose next call then fails or finds the end."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(OSError):
                    # Not SSLSocket.shutdown, which takes the TLS state away from under the other thread.
                    socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
                os.eventfd_write(self._woken, 1)

    def wait(self, seconds: float | None) -> Waited:
        """Until the peer closes or half closes, somebody wakes us, or ``seconds`` have gone (None: no limit)."""
        poll = select.poll()
        poll.register(self.sock.fileno(), _LEAVING)
        poll.register(self._woken, select.POLLIN)
        # Rounded up: a wait of less than a millisecond must not become none.
        ready = dict(poll.poll(None if seconds is None else int(seconds * 1000) + 1))
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._woken)
        if self.sock.fileno() in ready:
            return Waited.LEFT
        return Waited.WOKEN if ready else Waited.ELAPSED

    def pause(self, seconds: float) -> bool:
        """Sleep; False where the peer left meanwhile."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            if self.wait(rest) is Waited.LEFT:
                return False
        return True

    def finish(self) -> None:
        """Close with a FIN, after the end of TLS."""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.sock.settimeout(0)  # our half is sent at once; the peer's is not waited for
                self.sock.unwrap()
        self.cut(rst=False)

    def cut(self, *, rst: bool) -> None:
        """Close with nothing but a FIN, or with a RST once the peer's kernel has what was sent before.

        A RST makes our kernel drop what it has not sent yet, and the bytes before it are promised.
        """
        with contextlib.suppress(OSError):
            if rst:
                self._settle()
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            else:
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
                self._drain()
        self.close()

    def close(self) -> None:
        """Let go of socket and event; idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._woken)
                self.sock.close()

    def _settle(self) -> None:
        until = time.monotonic() + SETTLE_S
        while self._unacknowledged() and time.monotonic() < until:
            time.sleep(SETTLE_STEP_S)

    def _unacknowledged(self) -> int:
        answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return int.from_bytes(answer, "little")

    def _drain(self) -> None:
        """Take what has come unread: closing over it would make a RST of our FIN."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while socket.socket.recv_into(self.sock, bytearray(4096)):
                pass

"""Listening on one loopback port again and again, a thread for each connection, and no thread or socket left behind.

The half that ``server`` and ``shaped`` share: a port that can be closed and opened anew.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from sluice.testing.upstreams.line import Line

CONNECTIONS_MAX = 512
"""Connections at once; further ones wait in the kernel's backlog."""
BACKLOG = 512
STOP_S = 10.0

Serve = Callable[[Line, int], None]
"""Serves one connection, given its number from 1, in a thread of its own; the line is closed when it returns."""


class Listener:
    """Accepts on ``host``:``port`` between ``start`` and ``stop``, which may be called in turn any number of times."""

    def __init__(self, host: str, port: int, serve: Serve) -> None:
        self.accepted = 0
        self.stopping = True
        self._place = (host, port)
        self._serve = serve
        self._changed = threading.Condition()
        self._open: dict[Line, threading.Thread] = {}
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def lines(self) -> list[Line]:
        """The connections that are open."""
        with self._changed:
            return [*self._open]

    def start(self) -> None:
        """Listen; connections are accepted when it returns."""
        assert self._socket is None, "it is listening already"
        self._socket = socket.create_server(self._place, backlog=BACKLOG)
        self.stopping = False
        name = f"upstream-{self._place[1]}"
        self._thread = threading.Thread(target=self._accept, args=(self._socket, name), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection, and wait for the threads; idempotent."""
        if self._socket is None or self._thread is None:
            return
        with self._changed:
            self.stopping = True
            self._changed.notify_all()
        # Linux: ends the accept that waits in the other thread, which closing alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(STOP_S)
        self._socket.close()
        with self._changed:
            remaining = dict(self._open)
        for line in remaining:
            line.sever()
        for thread in remaining.values():
            thread.join(STOP_S)
        assert not any(thread.is_alive() for thread in (self._thread, *remaining.values())), "a thread does not end"
        self._socket = self._thread = None

    def _accept(self, listening: socket.socket, name: str) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.stopping or len(self._open) < CONNECTIONS_MAX)
                if self.stopping:
                    return
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            self.accepted += 1
            line = Line(accepted)
            number = self.accepted
            thread = threading.Thread(target=self._run, args=(line, number), name=f"{name}-{number}", daemon=True)
            with self._changed:
                self._open[line] = thread
                thread.start()

    def _run(self, line: Line, number: int) -> None:
        try:
            with contextlib.suppress(OSError):
                self._serve(line, number)
        finally:
            line.close()
            with self._changed:
                del self._open[line]
                self._changed.notify_all()

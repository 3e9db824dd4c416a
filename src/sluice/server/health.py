"""Operations: liveness, readiness and metrics, on a listener of their own.

They answer also when the registry's listener has no connection left to give, and they need no credentials: the
listener belongs on loopback or on the cluster's inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sluice.server.exchange import Exchange, Headers, Receive, Scope, Send
from sluice.telemetry import Metrics

TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
EXPOSITION: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
IDLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Why the server cannot serve reads or writes; an empty text means that it can."""

    reads: str = ""
    writes: str = ""


class Operations:
    """ASGI application for ``/livez``, ``/readyz``, ``/readyz?write`` and ``/metrics``."""

    def __init__(self, metrics: Metrics, readiness: Callable[[], Readiness]) -> None:
        self._metrics = metrics
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        x = Exchange(scope, receive, send, IDLE_S)
        if x.method not in {"GET", "HEAD"}:
            await x.respond(405, [*TEXT, (b"allow", b"GET, HEAD")], b"only GET and HEAD\n")
            return
        path = scope["raw_path"]
        if path == b"/livez":
            await x.respond(200, TEXT, b"ok\n")
        elif path == b"/readyz":
            await self._ready(x, writes=b"write" in scope["query_string"].split(b"&"))
        elif path == b"/metrics":
            await x.respond(200, EXPOSITION, self._metrics.render())
        else:
            await x.respond(404, TEXT, b"try /livez, /readyz, /readyz?write or /metrics\n")

    async def _ready(self, x: Exchange, *, writes: bool) -> None:
        readiness = self._readiness()
        reason = readiness.reads or (readiness.writes if writes else "")
        await x.respond(503 if reason else 200, TEXT, f"{reason or 'ok'}\n".encode())

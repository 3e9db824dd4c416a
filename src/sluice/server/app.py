"""The application: every request passes here, and here is the only place where an error becomes a response.

Flow: hot manifests are answered at once; anything else is parsed into a Route (``wire.route``), its caller identified
and checked (``server.access``), and handed to its handler. Counting and the access log happen once, at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from sluice.errors import MethodNotAllowed, RequestInvalid, RouteUnknown, SluiceError, UpstreamLoop
from sluice.server import blobs, listing, login, manifests, uploads
from sluice.server.access import Action, Principal, wanted_scopes
from sluice.server.blobs import Streams
from sluice.server.exchange import ClientGone, Exchange, Receive, Scope, Send
from sluice.server.hot import HotManifest, hot_key
from sluice.server.registry import Registry
from sluice.upstream.instance import RECEIVED_VIA, is_own
from sluice.wire.problem import problem_headers, render_errors
from sluice.wire.route import Kind, Route, check_method, parse_route

log = logging.getLogger("sluice.server")

Handler = Callable[[Registry, Exchange], Awaitable[None]]
CLIENT_GONE_STATUS = 499
WRITES = frozenset({Action.PUSH, Action.DELETE})
PULL_METHODS = frozenset({"GET", "HEAD"})
NO_BODY = {"type": "http.response.body", "body": b"", "more_body": False}


async def base(_: Registry, x: Exchange) -> None:
    """GET /v2/: this is a registry, and the caller is known."""
    await x.respond(200, [(b"content-type", b"application/json")], b"{}")


class Application:
    """The ASGI application of one listener. ``busy`` counts the requests in progress by the client's address.

    ``sever`` cuts a connection that has stopped taking bytes. ``certified`` is who everybody is on a listener that has
    demanded a client certificate; None where callers identify themselves by request.
    """

    def __init__(
        self, registry: Registry, sever: Callable[[Exchange], None], certified: Principal | None = None
    ) -> None:
        self.registry = registry
        self.certified = certified
        self.streams = Streams(registry.limits.streams_bytes)
        self.busy: dict[tuple[str, int], int] = {}
        self._sever = sever
        self._log = registry.access_log
        self._served = {method: registry.metrics.series("manifest", method, 200) for method in PULL_METHODS}
        self._handlers: dict[tuple[Kind, str], tuple[Handler, Action | None]] = {
            (Kind.BASE, "GET"): (base, None),
            (Kind.BASE, "HEAD"): (base, None),
            (Kind.CATALOG, "GET"): (listing.catalog, Action.CATALOG),
            (Kind.TAGS, "GET"): (listing.tags, Action.PULL),
            (Kind.REFERRERS, "GET"): (listing.referrers, Action.PULL),
            (Kind.MANIFEST, "GET"): (manifests.get, Action.PULL),
            (Kind.MANIFEST, "HEAD"): (manifests.get, Action.PULL),
            (Kind.MANIFEST, "PUT"): (manifests.put, Action.PUSH),
            (Kind.MANIFEST, "DELETE"): (manifests.delete, Action.DELETE),
            (Kind.BLOB, "GET"): (self._blob, Action.PULL),
            (Kind.BLOB, "HEAD"): (blobs.head, Action.PULL),
            (Kind.BLOB, "DELETE"): (blobs.delete, Action.DELETE),
            (Kind.UPLOADS, "POST"): (uploads.start, Action.PUSH),
            (Kind.UPLOAD, "PATCH"): (uploads.patch, Action.PUSH),
            (Kind.UPLOAD, "PUT"): (uploads.put, Action.PUSH),
            (Kind.UPLOAD, "GET"): (uploads.status, Action.PUSH),
            (Kind.UPLOAD, "DELETE"): (uploads.cancel, Action.PUSH),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        query = scope["query_string"]
        path = hot_key(scope["raw_path"], query) if query else scope["raw_path"]
        memory = self.registry.wiring.hot
        hot = memory.get(path)
        if hot is not None and began < hot.until and scope["method"] in PULL_METHODS:
            authorization = condition = None
            agent = b""
            for name, value in scope["headers"]:
                if name == b"user-agent":
                    agent = value
                elif name == b"authorization":
                    authorization = value
                elif name == b"if-none-match":
                    condition = value
            principal = self.certified or self.registry.access.cached(authorization)
            if condition is None and principal is not None and self._may_have(principal, scope["method"], hot):
                sent = hot.size if scope["method"] == "GET" else 0
                await send(hot.start)
                await send(hot.body if sent else NO_BODY)
                memory.hit(hot, began)
                self._count_hot(scope, sent, (began, principal.name, agent))
                return
        await self._answer(scope, receive, send, began)

    def _may_have(self, principal: Principal, method: str, hot: HotManifest) -> bool:
        """Whether memory may answer. A writer's HEAD goes to the store, where it counts as use (``manifests.get``)."""
        if not principal.allows(Action.PULL, hot.repository):
            return False
        return method == "GET" or not principal.allows(Action.PUSH, hot.repository)

    def _count_hot(self, scope: Scope, sent: int, who: tuple[float, str, bytes]) -> None:
        method, (began, name, agent) = scope["method"], who
        seconds = time.perf_counter() - began
        self._served[method].observe(seconds, sent)
        if self._log.enabled:
            self._log.record(
                (time.time(), method, scope["raw_path"], 200, sent, seconds, scope["client"][0], name, agent)
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send, began: float) -> None:
        x = Exchange(scope, receive, send, self.registry.limits.body_idle_s)
        x.wiring = wiring = self.registry.wiring
        x.marks = wiring.marks
        wiring.enter()
        peer = (scope["client"][0], int(scope["client"][1]))
        self.busy[peer] = self.busy.get(peer, 0) + 1
        operation = "other"
        try:
            operation = await self._guarded(x)
        finally:
            wiring.leave()
            self.busy[peer] -= 1
            if not self.busy[peer]:
                del self.busy[peer]
            seconds = time.perf_counter() - began
            self.registry.metrics.series(operation, _known(x.method), x.status).observe(seconds, x.sent)
            if self._log.enabled:
                self._record(x, seconds)

    def _record(self, x: Exchange, seconds: float) -> None:
        name = x.principal.name if hasattr(x, "principal") else "-"
        client = x.scope["client"][0] if x.scope.get("client") else "-"
        agent = x.header(b"user-agent") or b""
        self._log.record((time.time(), x.method, x.scope["raw_path"], x.status, x.sent, seconds, client, name, agent))

    async def _guarded(self, x: Exchange) -> str:
        """Dispatch; every error ends here. Returns the operation's name for the metrics."""
        try:
            await self._dispatch(x)
        except ClientGone:
            # Mostly nobody reads this; but a body in broken chunks ends so too, and its sender is still there.
            await self._problem(x, RequestInvalid("the body broke off before its end; send the request again"))
            x.status = CLIENT_GONE_STATUS
        except SluiceError as error:
            await self._problem(x, error)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            log.exception(
                "unexpected %s on %s %s", type(error).__name__, x.method, x.scope["raw_path"].decode("latin-1")
            )
            await self._problem(x, SluiceError("an unexpected error happened; the server's log has it"))
        return x.route.kind.value if hasattr(x, "route") else "other"

    async def _problem(self, x: Exchange, error: SluiceError) -> None:
        if x.status:
            return  # the head is out: ending here cuts the connection, which the client sees as an incomplete body
        x.marks = x.wiring.marks  # an error is no answer that came from somewhere
        if error.status >= 500:
            log.warning("%s %s: %s", x.method, x.scope["raw_path"].decode("latin-1"), error.message)
        await x.refuse(error.status, [*problem_headers(error), *x.error_headers], render_errors(error))

    async def _dispatch(self, x: Exchange) -> None:
        x.check_head()
        via = x.text_header(b"via")
        if via is not None:
            _take_via(via)
        x.route = parse_route(x.scope["raw_path"], x.method)
        check_method(x.route, x.method)
        if x.route.kind is Kind.TOKEN:
            if self.certified is not None:
                raise RouteUnknown("here clients are known by their certificates, and there are no tokens to ask for")
            await login.token(self.registry, x)
            return
        _locate(x)
        handler, action = self._handlers[x.route.kind, x.method]
        if x.wiring.sink is None:
            _check_readable(x, action)
        await self._admit(x, x.route, action)
        await self._entitle(x, action)
        await handler(self.registry, x)

    async def _admit(self, x: Exchange, route: Route, action: Action | None) -> None:
        access, origin = self.registry.access, x.origin
        if self.certified is not None:
            x.principal = self.certified
        else:
            wanted = wanted_scopes(action, route.repository)
            x.principal = await access.identify(x.header(b"authorization"), origin, wanted)
        access.require(x.principal, action, route.repository, origin)

    async def _entitle(self, x: Exchange, action: Action | None) -> None:
        """Ask the upstream whether it knows this caller too, where the configuration says so.

        Not behind a door for certificates: those callers have no password, and asking for one would make containerd
        show its users' (401).
        """
        asks = x.wiring.entitlement if self.certified is None else None
        if asks is not None and action is Action.PULL and x.route.repository is not None:
            await asks.require(x.route, x.header(b"authorization"))

    async def _blob(self, registry: Registry, x: Exchange) -> None:
        await blobs.get(registry, x, self.streams, self._sever)


def _take_via(via: str) -> None:
    """Let what this request asks of upstreams carry on the chain; raises UpstreamLoop where it began here."""
    if is_own(via):
        raise UpstreamLoop(
            "this request was sent by this very server: an upstream of it, directly or through others, is itself"
        )
    RECEIVED_VIA.set(via)  # each request has a context of its own


def _locate(x: Exchange) -> None:
    """From the name in the path to the one here. Access is decided by the latter: it is the same by every way in."""
    repository = x.route.repository
    if repository is not None:
        x.asked = repository
        if x.wiring.names:
            x.route = replace(x.route, repository=x.wiring.names.locate(repository, x.query.get("ns")))


def _check_readable(x: Exchange, action: Action | None) -> None:
    """Raise MethodNotAllowed for a write, where the mode takes none."""
    if action in WRITES:
        raise MethodNotAllowed(
            f"this registry is in {x.wiring.mode} mode and takes no {x.method}: push to the registry behind it",
            allow="GET, HEAD",
        )


def _known(method: str) -> str:
    return method if method in {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"} else "other"

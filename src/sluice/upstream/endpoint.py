"""One address of an upstream as ``registry`` sees it: requests that are authenticated, tried again and cut short.

The order of the parts: a free connection, then the breaker, then ``auth`` over ``transport``, then ``retry``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from sluice.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTlsFailed,
    UpstreamUnreachable,
)
from sluice.upstream.answers import refusal
from sluice.upstream.auth import Authenticator
from sluice.upstream.breaker import Breaker
from sluice.upstream.credentials import CredentialSource
from sluice.upstream.exchange import Clients, Request, Response
from sluice.upstream.hold import Hold
from sluice.upstream.rate import RateLimit, parse_rate_limit
from sluice.upstream.retry import retry_delay
from sluice.upstream.settings import CredentialSettings, UpstreamSettings
from sluice.upstream.transport import Transport
from sluice.wire.address import UpstreamAddress

SUCCESSES = frozenset({200, 206})
FAILURES = (UpstreamUnreachable, UpstreamTlsFailed, UpstreamTimeout, UpstreamFailed)


def is_silence(error: UpstreamError) -> bool:
    """Whether an error may mean that the upstream itself is dead, and not that it says no or sends us elsewhere."""
    return isinstance(error, FAILURES) and not error.elsewhere


class _Lane:
    """The connections for one kind of request: small answers do not wait for blobs, whose readers may pause. Quotas
    are for one kind, too: a registry that counts manifests goes on giving blobs."""

    def __init__(self, count: int, purpose: str, remedy: str) -> None:
        self._count = count
        self._purpose = purpose
        self._remedy = remedy
        self._free = asyncio.Semaphore(count)
        self.hold = Hold()

    async def enter(self, patience_s: float) -> None:
        """Wait for a free one; raises UpstreamTimeout."""
        try:
            async with asyncio.timeout(patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise UpstreamTimeout(
                f"all {self._count} connections {self._purpose} have been in use for {patience_s:g} s: {self._remedy}"
            ) from None

    def leave(self) -> None:
        """It is free again."""
        self._free.release()


class Endpoint:
    """``handled``: the statuses that come back as a response beside 200 and 206; all others are errors."""

    def __init__(
        self,
        address: UpstreamAddress,
        settings: UpstreamSettings,
        credentials: CredentialSettings,
        clients: Clients,
        clock: Callable[[], float],
        breaker: Breaker | None = None,
    ) -> None:
        self.address = address
        self.transport = Transport(address, settings, clients)
        self.breaker = breaker or Breaker()
        self.rate_limit: RateLimit | None = None
        self._auth = Authenticator(self.transport, CredentialSource(credentials, address, clock), clock)
        self._limits = settings.limits
        self._clock = clock
        limits = settings.limits
        remedy = f"raise {settings.key}.connections, or wait"
        self._blobs = _Lane(limits.connections, f"for blobs from {address}", remedy)
        self._small = _Lane(limits.small_connections, f"for manifests, lists and tokens from {address}", "wait")

    async def close(self) -> None:
        """End what is being fetched; the clients are their owner's to close."""
        await self._auth.close()

    async def send(self, request: Request, scope: str, handled: frozenset[int] = frozenset()) -> Response:
        """Send a GET or HEAD; raises an UpstreamError."""
        lane = self._small if request.small else self._blobs
        lane.hold.require(self._clock())
        await lane.enter(self._limits.head_s)
        try:
            lane.hold.require(self._clock())  # who waited may have to wait longer by now
            response = await self._tried(request, scope, handled)
        except BaseException as error:
            lane.leave()
            if isinstance(error, UpstreamRateLimited) and (error.retry_after_s or 0) > self._limits.backoff_max_s:
                lane.hold.note(error, self._clock())
            raise
        response.on_close(lane.leave)
        return response

    async def ping(self) -> None:
        """Ask whether it is there (OCI Distribution Specification 1.1, "Determining Support"), and tell the breaker.

        Raises what ``send`` raises. Only what ``is_silence`` says is an upstream that is not there: a 401, for one, is
        an answer.
        """
        response = await self.send(Request("GET", self.transport.target("/v2/")), scope="")
        await response.discard()

    async def _tried(self, request: Request, scope: str, handled: frozenset[int]) -> Response:
        attempt = 1
        while True:
            try:
                return await self._attempt(request, scope, handled)
            except UpstreamError as error:
                fraction = random.random()
                delay = retry_delay(error, error.retry_after_s, attempt, fraction, self._limits)
                if delay is None or self.breaker.is_open:
                    raise
            await asyncio.sleep(delay)
            attempt += 1

    async def _attempt(self, request: Request, scope: str, handled: frozenset[int]) -> Response:
        """Once, and tell the breaker how it went. It hears of every way out, or a probe would block the next."""
        if not self.breaker.allow(self._clock()):
            last = self.breaker.trouble
            assert last is not None  # of any request: the message must not look as if it were about this one
            raise type(last)(f"the upstream {self.address} is not asked again yet, for it failed: {last.message}")
        about = request.target.url.partition("?")[0]
        try:
            response = await self._auth.send(request, scope)
            self.rate_limit = parse_rate_limit(response.headers) or self.rate_limit
            if response.status in SUCCESSES | handled:
                self.breaker.succeeded(self._clock())
                return response
            error = await refusal(response, self._limits.error_body_bytes)
            error.connected = True
            error.elsewhere = not self.transport.is_home(response.target)
        except UpstreamError as raised:
            error = raised
        except BaseException:
            self.breaker.abandoned()
            raise
        self._judge(error, about)
        raise error

    def _judge(self, error: UpstreamError, about: str) -> None:
        """Tell the breaker what an error says about this upstream: nothing where it redirected us to who failed."""
        if not is_silence(error):
            self.breaker.succeeded(self._clock())  # it answers, if not what we want
            return
        self.breaker.trouble = error
        alive = error.connected or isinstance(error, UpstreamFailed)
        self.breaker.failed(self._clock(), about if alive else None)

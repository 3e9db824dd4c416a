"""Requests to one address, redirects followed: credentials stay at home, and nothing inside is reached from outside.

``endpoint`` sends through it and adds credentials, retries and the breaker; ``redirect`` has the rules. An upstream on
a public address cannot send us to a private one. The check looks the name up and the library looks it up again when it
connects: a name that changes its address in between passes (DNS rebinding). Pinning the address would need a client of
the library, with connections of its own, for every host that blobs are stored at.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from sluice.errors import UpstreamError, UpstreamInvalid, UpstreamUnreachable
from sluice.upstream.exchange import Clients, Request, Response
from sluice.upstream.redirect import REDIRECTS, Target, any_internal, is_internal, next_target, parse_target
from sluice.upstream.settings import UpstreamSettings
from sluice.wire.address import UpstreamAddress


class Transport:
    """One address of an upstream. ``clients`` may be shared between the addresses."""

    def __init__(self, address: UpstreamAddress, settings: UpstreamSettings, clients: Clients) -> None:
        self.address = address
        self.limits = settings.limits
        self._clients = clients
        self._proxied = settings.proxy is not None
        self._home = parse_target(address.origin)

    def target(self, path: str, query: str = "") -> Target:
        """The URL of an absolute ``path`` (plain text); ``query`` is escaped already."""
        return parse_target(self.address.url(path) + (f"?{query}" if query else ""))

    def is_home(self, target: Target) -> bool:
        """Whether it is this very host and port."""
        return target.place == self._home.place

    async def send(self, request: Request) -> Response:
        """Send, follow redirects, return the first answer that is none.

        Raises UpstreamUnreachable, UpstreamTlsFailed, UpstreamTimeout, or UpstreamInvalid for a redirect that must not
        be followed; ``elsewhere`` on it says whether another host than the one that was asked is to blame.
        """
        step, seen = request, {request.target.url}
        for _ in range(self.limits.redirects + 1):
            response = await self._step(step, elsewhere=step is not request and not self.is_home(step.target))
            if response.status not in REDIRECTS:
                return response
            location = response.header("location")
            await response.discard()
            if request.form is not None:
                raise UpstreamInvalid(f"{step.target.shown} redirects a request that holds credentials: not followed")
            target = next_target(step.target, location)
            if target.url in seen:
                raise UpstreamInvalid(f"{request.target.shown} redirects in a circle, by way of {target.shown}")
            seen.add(target.url)
            await self._check_redirect(target)
            same = target.place == request.target.place and target.scheme == request.target.scheme
            step = replace(step, target=target, authorization=request.authorization if same else None)
        raise UpstreamInvalid(f"{request.target.shown} redirects more than {self.limits.redirects} times in a row")

    async def _step(self, step: Request, *, elsewhere: bool) -> Response:
        try:
            return await self._clients.send(step, own=self.is_home(step.target))
        except UpstreamError as error:
            error.elsewhere = elsewhere
            raise

    async def _check_redirect(self, target: Target) -> None:
        try:
            await self.check(target)
        except UpstreamError as error:
            error.elsewhere = True
            raise

    async def check(self, target: Target) -> None:
        """Whether an answer may send us to ``target``; raises UpstreamInvalid or UpstreamUnreachable."""
        if self.is_home(target) or self.limits.allow_private_redirects:
            return
        if not any_internal(await self._addresses(target)):
            return
        if any_internal(await self._addresses(self._home)):
            return  # an upstream that is inside itself may store its blobs inside
        raise UpstreamInvalid(
            f"the upstream {self.address} sends us to {target.shown}, which is on a private address: not followed"
            " unless private redirects are allowed"
        )

    async def _addresses(self, target: Target) -> list[str]:
        """All that the name stands for. Behind a proxy a name may be unknown here: then the proxy must know better."""
        try:
            is_internal(target.host)
        except ValueError:
            pass
        else:
            return [target.host]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            if self._proxied:
                return []
            reason = str(error) or f"no answer within {self.limits.connect_s:g} s"
            raise UpstreamUnreachable(f"{target.host} has no address: {reason}") from None
        return [str(entry[4][0]) for entry in found]

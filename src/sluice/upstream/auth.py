"""Requests with credentials: Basic, or Bearer with tokens from the realm that the upstream names.

``endpoint`` sends through it, it sends through ``transport``. What an upstream asked for once is sent along with the
next request unasked. Sources: the Docker registry's "Token Authentication Specification" (GET) and "Token
Authentication with OAuth 2" (POST), RFC 7617, RFC 6750.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from sluice.errors import UpstreamError, UpstreamInvalid, UpstreamUnauthorized
from sluice.upstream.answers import refusal
from sluice.upstream.credentials import CredentialSource
from sluice.upstream.docker_config import Credentials
from sluice.upstream.exchange import Request, Response
from sluice.upstream.redirect import Target, parse_target
from sluice.upstream.tokens import Token, TokenCache, parse_token
from sluice.upstream.transport import Transport
from sluice.wire.challenge import SCOPES_MAX, Challenge, parse_challenges

CLIENT_ID = "sluice"
CANDIDATES_MAX = 3
"""Credentials tried for one request."""
SCOPES_KEPT_MAX = 1024
"""Repositories whose scope is remembered where the upstream's word for it differs from ours."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Where tokens come from, and for what service."""

    realm: Target
    service: str


@dataclass(frozen=True, slots=True)
class Basic:
    """A name and password with every request."""


@dataclass(frozen=True, slots=True)
class _Key:
    """What a token is good for, and whose it is."""

    bearer: Bearer
    scopes: tuple[str, ...]
    credentials: Credentials | None


class Authenticator:
    """One address and our credentials for it."""

    def __init__(self, transport: Transport, source: CredentialSource, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._source = source
        self._tokens = TokenCache(clock)
        self._scheme: Bearer | Basic | None = None
        self._scopes: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._endpoint_posts = False

    async def send(self, request: Request, scope: str) -> Response:
        """Send with what is asked for. ``scope`` is what the request needs, as ``repository:team/app:pull``;
        empty: nothing but to be somebody.

        Raises UpstreamUnauthorized where neither the new credentials nor those known to be good are taken.
        """
        tried: list[Credentials | None] = []
        candidates = await self._source.candidates()
        while True:
            credentials = next(one for one in candidates if one not in tried)
            tried.append(credentials)
            try:
                return await self._send_as(request, scope, credentials)
            except UpstreamUnauthorized:
                self._source.refused(credentials)
                # Looked up again: a file or a helper may have something newer by now.
                candidates = await self._source.candidates()
                if len(tried) >= CANDIDATES_MAX or all(one in tried for one in candidates):
                    raise

    async def close(self) -> None:
        """End what is being fetched."""
        await self._tokens.close()

    async def _send_as(self, request: Request, scope: str, credentials: Credentials | None) -> Response:
        """Raises UpstreamUnauthorized where these credentials are not taken; a 403 is for the caller to judge."""
        known, first = self._scheme, None
        failure: UpstreamError | None = None
        try:
            first = await self._authorization(scope, credentials)
        except UpstreamError as raised:
            failure = raised  # the realm may be another by now: asked without a token, the upstream tells
        response = await self._transport.send(replace(request, authorization=first))
        if failure is not None and response.status < 400:
            self._scheme = None
        if response.status == 401 and self._transport.is_home(response.target):
            challenges = parse_challenges(response.headers("www-authenticate"))
            error = await self._refusal(response)
            self._learn(challenges, scope)
            if failure is not None and self._scheme == known:
                raise failure
            if first is not None and isinstance(self._scheme, Bearer):
                self._tokens.drop(self._key(self._scheme, scope, credentials), first.removeprefix("Bearer "))
            second = await self._authorization(scope, credentials)
            if second is None or second == first:
                raise error
            first = second
            response = await self._transport.send(replace(request, authorization=second))
        if response.status == 401:
            raise await self._refusal(response)
        if first is not None and response.status < 400:
            self._source.worked(credentials)
        return response

    async def _refusal(self, response: Response) -> UpstreamError:
        return await refusal(response, self._transport.limits.error_body_bytes)

    def _learn(self, challenges: tuple[Challenge, ...], scope: str) -> None:
        """Bearer goes before Basic where both are offered: it shows our password to the realm only."""
        by_scheme = {challenge.scheme: challenge.parameters for challenge in reversed(challenges)}
        if "bearer" in by_scheme and by_scheme["bearer"].get("realm"):
            wanted = by_scheme["bearer"]
            self._scheme = Bearer(self._realm(wanted["realm"]), wanted.get("service", ""))
            scopes = tuple(wanted.get("scope", "").split()[:SCOPES_MAX])
            self._scopes.pop(scope, None)
            if scopes and scopes != (scope,):
                self._scopes[scope] = scopes
                if len(self._scopes) > SCOPES_KEPT_MAX:
                    self._scopes.popitem(last=False)
        elif "basic" in by_scheme:
            self._scheme = Basic()

    def _realm(self, text: str) -> Target:
        realm = parse_target(text)
        if realm.scheme == "http" and self._transport.address.scheme == "https":
            raise UpstreamInvalid(
                f"the upstream {self._transport.address} sends us to {realm.shown} for a token, which is plain HTTP:"
                " no credentials are sent there"
            )
        return realm

    async def _authorization(self, scope: str, credentials: Credentials | None) -> str | None:
        """The header for what we know that the upstream asks for."""
        if isinstance(self._scheme, Basic):
            if credentials is None or credentials.is_identity_token:
                return None
            return _basic(credentials)
        if isinstance(self._scheme, Bearer):
            key = self._key(self._scheme, scope, credentials)
            return f"Bearer {await self._tokens.get(key, lambda: self._fetch(key))}"
        return None

    def _key(self, bearer: Bearer, scope: str, credentials: Credentials | None) -> _Key:
        return _Key(bearer, self._scopes.get(scope, (scope,) if scope else ()), credentials)

    async def _fetch(self, key: _Key) -> Token:
        """GET first: every endpoint knows it. POST where there is an identity token, or where GET is not known."""
        await self._transport.check(key.bearer.realm)
        credentials = key.credentials
        posts = credentials is not None and (credentials.is_identity_token or self._endpoint_posts)
        response = await self._transport.send(_posted(key) if posts else _gotten(key))
        if not posts and credentials is not None and response.status in {404, 405}:
            await response.discard()
            response = await self._transport.send(_posted(key))
            self._endpoint_posts = response.status == 200
        if response.status == 200:
            return parse_token(await response.whole(self._transport.limits.token_body_bytes))
        error = await self._refusal(response)
        if 400 <= response.status < 500 and isinstance(error, UpstreamInvalid):
            raise UpstreamUnauthorized(error.message)  # RFC 6749 section 5.2: a refused grant is 400
        raise error


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.name}:{credentials.secret}".encode()).decode("ascii")


def _gotten(key: _Key) -> Request:
    parameters = [("service", key.bearer.service)] if key.bearer.service else []
    parameters += [("scope", scope) for scope in key.scopes]
    credentials = key.credentials
    if credentials is not None:
        parameters.append(("account", credentials.name))
    separator = "&" if "?" in key.bearer.realm.url else "?"
    target = parse_target(f"{key.bearer.realm.url}{separator}{urlencode(parameters)}")
    return Request("GET", target, authorization=None if credentials is None else _basic(credentials))


def _posted(key: _Key) -> Request:
    assert key.credentials is not None
    form = {"service": key.bearer.service, "client_id": CLIENT_ID}
    if key.scopes:
        form["scope"] = " ".join(key.scopes)
    if key.credentials.is_identity_token:
        form |= {"grant_type": "refresh_token", "refresh_token": key.credentials.secret}
    else:
        form |= {"grant_type": "password", "username": key.credentials.name, "password": key.credentials.secret}
    return Request("POST", key.bearer.realm, form=form)

"""The upstream that wants to know who asks: Basic, or the token flow of Docker's registry in all its variants. PURE.

Source: "Token Authentication Specification" and "Docker Registry v2 authentication using OAuth2". A token says itself
when it was issued and for what; nobody forges tokens in a test, so nothing is signed and nothing need be remembered.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl

from sluice.errors import RequestInvalid
from sluice.testing.upstreams.matching import When, anything
from sluice.testing.upstreams.reply import JSON, Reply, refusal
from sluice.testing.upstreams.seen import Kind, SeenRequest
from sluice.wire.challenge import Scope, basic_challenge, bearer_challenge, parse_scopes
from sluice.wire.credentials import BasicCredentials, BearerCredentials, parse_authorization

SERVICE = "upstream.test"
LIFETIME_S = 300.0


class Scheme(Enum):
    """What the challenge asks for."""

    BASIC = "basic"
    BEARER = "bearer"


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """401 with a challenge for whoever does not prove to be one of ``users`` (name to password).

    ``anonymous``: the token endpoint gives a token to whoever names nobody. ``realm``: its URL; None is ``/token`` on
    the same server, and a server whose faults hold this value always has it there. ``methods``: the token endpoint's
    (GET, POST or both; 405 for others). ``lifetime_s``: how long a token is good; ``declared_s``: what ``expires_in``
    says, true or not (None: it says nothing). ``member``: where the token stands in the answer, ``token`` or
    ``access_token``. ``refused``: kinds of requests that are refused even with a good token. ``denied``: that with 403.
    ``generation``: tokens that were issued under another one are no longer good.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    scheme: Scheme | str = Scheme.BEARER
    anonymous: bool = False
    realm: str | None = None
    methods: tuple[str, ...] = ("GET",)
    lifetime_s: float = LIFETIME_S
    declared_s: int | None = int(LIFETIME_S)
    member: str = "token"
    refused: frozenset[Kind] = frozenset()
    denied: bool = False
    generation: int = 0
    times: int | None = None
    when: When = anything

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """A token, a challenge, or nothing where the proof is good."""
        if request.kind is Kind.TOKEN:
            return self._token_reply(request)
        proof = parse_authorization(_octets(request.headers.get("authorization")))
        if Scheme(self.scheme) is Scheme.BASIC:
            good = isinstance(proof, BasicCredentials) and self._knows(proof)
        else:
            good = isinstance(proof, BearerCredentials) and self._is_good(proof.token, request)
        if good and request.kind not in self.refused:
            return None
        if good and self.denied:
            return refusal(403, "DENIED")
        error = "invalid_token" if proof is not None else None
        return refusal(401, "UNAUTHORIZED", (("WWW-Authenticate", self._challenge(request, error)),))

    def _challenge(self, request: SeenRequest, error: str | None) -> str:
        if Scheme(self.scheme) is Scheme.BASIC:
            return basic_challenge(SERVICE)
        scopes = [_pull(request)] if request.repository else []
        return bearer_challenge(self.realm or f"{request.server}/token", SERVICE, scopes, error)

    def _knows(self, proof: BasicCredentials) -> bool:
        return self.users.get(proof.name) == proof.password

    def _token_reply(self, request: SeenRequest) -> Reply:
        if request.method not in self.methods:
            return refusal(405, "UNSUPPORTED", (("Allow", ", ".join(self.methods)),))
        asked = _posted(request) if request.method == "POST" else _got(request)
        known = self._knows(asked.proof) if asked.proof is not None else self.anonymous
        if not known:
            return refusal(401, "UNAUTHORIZED", (("WWW-Authenticate", basic_challenge(SERVICE)),))
        try:
            scopes = [str(scope) for scope in parse_scopes(asked.scopes)]
        except RequestInvalid:
            return refusal(400, "UNSUPPORTED")
        issued = {"scopes": scopes, "issued": request.came, "generation": self.generation}
        token = base64.urlsafe_b64encode(json.dumps(issued).encode()).decode()
        answer: dict[str, object] = {self.member: token}
        if self.declared_s is not None:
            answer["expires_in"] = self.declared_s
        return Reply.of(200, json.dumps(answer).encode(), JSON)

    def _is_good(self, token: str, request: SeenRequest) -> bool:
        try:
            issued = json.loads(base64.urlsafe_b64decode(token))
            scopes = parse_scopes(issued["scopes"])
            fresh = request.came - issued["issued"] <= self.lifetime_s and issued["generation"] == self.generation
        except (ValueError, KeyError, TypeError, binascii.Error, RequestInvalid):
            return False
        wanted = _pull(request)
        return fresh and (
            not request.repository or any(one.name == wanted.name and wanted.actions <= one.actions for one in scopes)
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for a token: who asks, None for nobody, and for what."""

    proof: BasicCredentials | None
    scopes: tuple[str, ...]


def _got(request: SeenRequest) -> _Asked:
    proof = parse_authorization(_octets(request.headers.get("authorization")))
    if proof is not None and not isinstance(proof, BasicCredentials):
        proof = BasicCredentials("", "")
    return _Asked(proof, request.query.get("scope", ()))


def _posted(request: SeenRequest) -> _Asked:
    """OAuth2, the grant type ``password``; with another one nobody asks."""
    form = dict(parse_qsl(request.body.decode("latin-1"), keep_blank_values=True))
    scopes = (form.get("scope", ""),)
    if form.get("grant_type") != "password":
        return _Asked(None, scopes)
    return _Asked(BasicCredentials(form.get("username", ""), form.get("password", "")), scopes)


def _pull(request: SeenRequest) -> Scope:
    return Scope("repository", request.repository, frozenset({"pull"}))


def _octets(header: str | None) -> bytes | None:
    return None if header is None else header.encode("latin-1")

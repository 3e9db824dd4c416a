"""Tokens of the Docker token protocol: what a client asks for, what it gets, and what a token proves later.

``access.token`` answers the token endpoint with ``Tokens.issue``; ``access.identify`` asks ``Tokens.verify`` about a
Bearer token. A token carries a fingerprint of its user's record, so it ends with the user, the password or the role,
whatever life it has left. Sources: RFC 7519, RFC 6749 section 4.3, the Docker registry's "Token Authentication
Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import jwt

from sluice.errors import RequestInvalid
from sluice.pki.signing import identifier, load_keys, rotate_keys
from sluice.server.passwords import Remembered
from sluice.server.users import User, Users
from sluice.wire.challenge import Scope, parse_scopes
from sluice.wire.credentials import AUTHORIZATION_LENGTH_MAX, BasicCredentials, Credentials, parse_authorization
from sluice.wire.query import Query, parse_query

KEY_FILE_NAME = "token.key"
NOT_BEFORE_LEEWAY_S = 10
TOKEN_LENGTH_MAX = AUTHORIZATION_LENGTH_MAX - 256  # must come back in one header
CLAIMS_REMEMBERED_MAX = 10_000
CATALOG = "registry:catalog"
"""The key of the catalog among grants; a colon cannot occur in a repository's name."""

_ALGORITHM = "HS256"
_CLAIMS = ["aud", "exp", "iss", "nbf", "sub", "jti", "access", "record"]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a client asks of the token endpoint. ``service`` is None where it does not say."""

    service: str | None
    scopes: tuple[Scope, ...]
    credentials: Credentials | None

    @classmethod
    def from_query(cls, query: bytes, authorization: bytes | None) -> TokenRequest:
        """From ``GET /token?service=…&scope=…`` and its ``Authorization`` header; raises RequestInvalid."""
        fields = parse_query(query)
        return cls(fields.get("service"), parse_scopes(fields.all("scope")), parse_authorization(authorization))

    @classmethod
    def from_form(cls, form: bytes, authorization: bytes | None) -> TokenRequest:
        """From the body of ``POST /token`` (``application/x-www-form-urlencoded``); raises RequestInvalid.

        Only ``grant_type=password`` is served: there are no refresh tokens to bring.
        """
        fields = parse_query(form)
        grant = fields.get("grant_type", "")
        if grant != "password":
            raise RequestInvalid(
                f"unsupported_grant_type: grant_type is {grant[:80]!r}; send grant_type=password with username and"
                " password, or GET with Basic credentials",
                detail={"error": "unsupported_grant_type"},
            )
        return cls(fields.get("service"), parse_scopes(fields.all("scope")), _in_form(fields, authorization))


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token. ``expires_in`` is in seconds from ``issued_at`` (UTC)."""

    token: str
    expires_in: int
    issued_at: datetime

    def render(self) -> bytes:
        """The JSON body; the token goes by both of the names that clients look for."""
        document = {
            "token": self.token,
            "access_token": self.token,
            "expires_in": self.expires_in,
            "issued_at": self.issued_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token proves. ``subject`` is empty for an anonymous one; ``expires_at`` is in seconds since 1970.

    ``grants`` has the actions by repository name, and the catalog's under ``CATALOG``.
    """

    subject: str
    record: str
    grants: Mapping[str, frozenset[str]]
    expires_at: float


class Tokens:
    """Issues and verifies the tokens of one registry, with the keys in ``<data>/token.key``."""

    def __init__(self, data: Path, users: Users, service: str, *, clock: Callable[[], float] = time.time) -> None:
        """``service`` is both issuer and audience; ``clock`` gives seconds since 1970. Raises ConfigInvalid."""
        self.clock = clock
        self._users = users
        self._service = service
        self._path = data / KEY_FILE_NAME
        self._keys = load_keys(self._path, clock())
        self._remembered: Remembered[TokenClaims] = Remembered(CLAIMS_REMEMBERED_MAX)

    def renew(self, ttl_s: int) -> bool:
        """Let a new key sign where the current one has done so for long; tokens of ``ttl_s`` live to their end.

        False where it is not time. Blocks. Raises StorageFull or ConfigInvalid, and the current one goes on signing.
        """
        now = self.clock()
        if not self._keys.is_due(now):
            return False
        self._keys = rotate_keys(self._path, self._keys, now, ttl_s)
        return True

    def issue(self, user: User | None, scopes: Sequence[Scope], ttl_s: int) -> TokenResponse:
        """A token for ``user`` (None: anonymous) with exactly ``scopes``, for ``ttl_s`` seconds.

        Raises RequestInvalid when there are so many scopes that the token would not fit into a header.
        """
        now = int(self.clock())
        claims: dict[str, object] = {
            "iss": self._service,
            "aud": self._service,
            "sub": "" if user is None else user.name,
            "nbf": now - NOT_BEFORE_LEEWAY_S,
            "iat": now,
            "exp": now + ttl_s,
            "jti": secrets.token_hex(16),
            "access": [{"type": s.type, "name": s.name, "actions": sorted(s.actions)} for s in scopes],
            "record": "" if user is None else user.fingerprint,
        }
        token = jwt.encode(claims, self._keys.current, _ALGORITHM, {"kid": identifier(self._keys.current)})
        if len(token) > TOKEN_LENGTH_MAX:
            raise RequestInvalid(
                f"a token for {len(scopes)} scopes would have {len(token)} bytes, and at most {TOKEN_LENGTH_MAX} fit"
                " into a header; ask for fewer scopes at once"
            )
        return TokenResponse(token, ttl_s, datetime.fromtimestamp(now, UTC))

    def verify(self, token: str) -> tuple[TokenClaims, User | None] | None:
        """What the token proves now and whose it is; None when it is not ours, is over, or its user has changed."""
        now, key = self.clock(), sha256(token.encode("utf-8", "surrogatepass")).digest()
        claims = self._remembered.get(key, now)
        if claims is None:
            claims = self._decode(token, now)
            if claims is None:
                return None
            self._remembered.put(key, claims, claims.expires_at)
        if not claims.subject:
            return claims, None
        user = self._users.get(claims.subject)
        return (claims, user) if user is not None and user.fingerprint == claims.record else None

    def _decode(self, token: str, now: float) -> TokenClaims | None:
        # The times are compared below, with our clock; the library would look at its own.
        options = {"require": _CLAIMS, "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            named = jwt.get_unverified_header(token).get("kid", identifier(self._keys.current))
            key = self._keys.accepted(now)[named]
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self._service,
                issuer=self._service,
                options=options,  # type: ignore[arg-type]
            )
            if not claims["nbf"] <= now < claims["exp"]:
                return None
            return TokenClaims(claims["sub"], claims["record"], _grants(claims["access"]), float(claims["exp"]))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
            return None


def _grants(access: Sequence[Mapping[str, object]]) -> Mapping[str, frozenset[str]]:
    grants: dict[str, frozenset[str]] = {}
    for entry in access:
        kind, name, actions = entry["type"], entry["name"], entry["actions"]
        if not isinstance(name, str) or not isinstance(actions, list):
            raise TypeError("access entries have a name and a list of actions")
        key = name if kind == "repository" else f"{kind}:{name}"
        grants[key] = grants.get(key, frozenset()) | frozenset(actions)
    return MappingProxyType(grants)


def _in_form(fields: Query, authorization: bytes | None) -> Credentials | None:
    if "username" in fields or "password" in fields:
        return BasicCredentials(fields.get("username", ""), fields.get("password", ""))
    return parse_authorization(authorization)

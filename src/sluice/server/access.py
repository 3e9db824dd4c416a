"""Who is asking, and whether they may: every request passes ``identify`` (or ``cached``) and then ``require``.

``server.app`` calls in; users, passwords and tokens are looked up below. The answer to "who" is a ``Principal``, which
answers "may I" by itself without I/O. Decisions are remembered by the header that proved them, and forgotten together
as soon as any user changes. Nobody is anybody unless a setting says so: without users a registry is open on loopback
(``AccessSettings.open``) and closed elsewhere, and the first user that is added closes it everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Literal

from sluice.errors import Denied, NameInvalid, RequestInvalid, Unauthorized
from sluice.oci.reference import Repository, parse_repository
from sluice.server.passwords import MATCH_LIFE_S, PasswordCheck
from sluice.server.tokens import CATALOG, TokenRequest, Tokens
from sluice.server.users import Role, User, Users
from sluice.wire.challenge import Scope, basic_challenge, bearer_challenge
from sluice.wire.credentials import BasicCredentials, BearerCredentials, Malformed, parse_authorization

REMEMBERED_MAX = 10_000
REMEMBERED_BYTES_MAX = 8 * 1024 * 1024  # of headers, which are the keys
REFRESH_S = 0.1
ANONYMOUS = "anonymous"


class Action(StrEnum):
    """What can be done. The first three are the words of token scopes."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"
    ADMIN = "admin"


_NONE: frozenset[str] = frozenset()
_IN_REPOSITORY = frozenset({Action.PULL, Action.PUSH, Action.DELETE})
_MAY: Mapping[Role, frozenset[Action]] = {
    Role.READ: frozenset({Action.PULL, Action.CATALOG}),
    Role.WRITE: _IN_REPOSITORY | {Action.CATALOG},
    Role.ADMIN: frozenset(Action),
}
_ASKED_FOR = {Action.PUSH: frozenset({"pull", "push"})}  # a push looks before it writes


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Who is asking. ``within`` has the prefixes with a slash at the end; empty means every repository.

    ``grants`` is what a token was issued for: actions by repository. None where there is no token to narrow it.
    """

    name: str
    actions: frozenset[Action]
    within: tuple[str, ...] = ()
    grants: Mapping[str, frozenset[str]] | None = None
    anonymous: bool = False

    @classmethod
    def of(cls, user: User, grants: Mapping[str, frozenset[str]] | None = None) -> Principal:
        """A user, narrowed to ``grants`` when a token was shown."""
        return cls(user.name, _MAY[user.role], tuple(f"{prefix}/" for prefix in user.prefixes), grants)

    @classmethod
    def certificate(cls, role: Role, name: str = "certificate") -> Principal:
        """Whoever passed a listener that demands client certificates."""
        return cls(name, _MAY[role])

    def allows(self, action: Action, repository: str | None = None) -> bool:
        """Whether this principal may; ``repository`` is None for the catalog and for administration.

        Cheaper than remembering the answer would be: two set lookups and one prefix comparison in C.
        """
        # ``could`` is repeated here in its first lines: this runs on every request.
        if action not in self.actions:
            return False
        if self.within and repository is not None and not f"{repository}/".startswith(self.within):
            return False
        grants = self.grants
        if grants is None:
            return True
        if repository is None:
            return action is Action.CATALOG and "*" in grants.get(CATALOG, _NONE)
        return action in grants.get(repository, _NONE)

    def could(self, action: Action, repository: str | None = None) -> bool:
        """``allows`` with a token for the right scope: what the role and the prefixes say, whatever was granted.

        The catalog shows the repositories that the caller could pull from.
        """
        if action not in self.actions:
            return False
        # By segment: 'team/' begins 'team/' and 'team/app/', but not 'teamx/'.
        return repository is None or not self.within or f"{repository}/".startswith(self.within)

    @property
    def introduced(self) -> bool:
        """Whether ``GET /v2/`` is answered: a user, a certificate, any token, or a registry that is open."""
        return not self.anonymous or self.grants is not None or Action.ADMIN in self.actions


_OPEN = Principal(ANONYMOUS, _MAY[Role.ADMIN], anonymous=True)


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """``open``: while there are no users, anybody may do anything (the listener is on loopback).

    ``realm`` is the token endpoint's URL where it is not ``<origin>/token``.
    """

    open: bool
    anonymous_pull: bool
    challenge: Literal["bearer", "basic"]
    service: str
    realm: str | None
    token_ttl_s: int


class Access:
    """The access checks of one registry, for one event loop."""

    def __init__(
        self,
        users: Users,
        passwords: PasswordCheck,
        tokens: Tokens,
        settings: AccessSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` counts seconds and never jumps; what is remembered expires by it."""
        self._users = users
        self._passwords = passwords
        self._tokens = tokens
        self._settings = settings
        self._clock = clock
        self._remembered: dict[bytes | None, tuple[float, int, Principal]] = {}
        self._remembered_bytes = 0
        self._refresh_at = 0.0

    @property
    def open(self) -> bool:
        """Whether anybody may do anything right now."""
        return self._settings.open and not len(self._users)

    def cached(self, authorization: bytes | None) -> Principal | None:
        """Who this header (None: no header) proved to be, as long as that holds; after None, ask ``identify``."""
        entry = self._remembered.get(authorization)
        if entry is None:
            return None
        now = self._clock()
        if now >= self._refresh_at:  # a clock of its own, because a call more per request is seen in benchmarks
            self._refresh_at = now + REFRESH_S
            self._users.refresh()
        if entry[1] != self._users.revision:
            self._forget()
            return None
        return entry[2] if now < entry[0] else None

    async def identify(self, authorization: bytes | None, origin: str, wanted: Iterable[Scope] = ()) -> Principal:
        """Who is asking. ``origin`` is this registry as the client sees it, ``https://127.0.0.1:5001``.

        ``wanted`` is what a challenge asks for. Raises Unauthorized for credentials that prove nothing,
        TooManyRequests or Unavailable when a password cannot be checked now.
        """
        known = self.cached(authorization)
        if known is not None:
            return known
        self._users.refresh()
        revision = self._users.revision
        principal, life_s = await self._recognise(authorization, origin, wanted)
        self._remember(authorization, (self._clock() + life_s, revision, principal))
        return principal

    def require(self, principal: Principal, action: Action | None, repository: Repository | None, origin: str) -> None:
        """Return when ``principal`` may; raises Unauthorized where other credentials could help, else Denied.

        ``action`` is None for ``GET /v2/``, which clients call to learn whether and how to log in.
        """
        if principal.introduced if action is None else principal.allows(action, repository):
            return
        if principal.anonymous or action is None or principal.could(action, repository):
            error = None if principal.grants is None else "insufficient_scope"
            raise self._unauthorized(self._why(principal), origin, wanted_scopes(action, repository), error)
        what = "list the catalog" if repository is None else f"{action} in repository {repository}"
        raise Denied(
            f"user {principal.name!r} may not {what}; ask an administrator for a role and prefixes that allow it"
        )

    async def token(self, grant: TokenRequest, origin: str) -> bytes:
        """The JSON body that answers the token endpoint, 200: a token for what was asked for and is allowed.

        Raises Unauthorized (wrong or no credentials), RequestInvalid, TooManyRequests, Unavailable.
        """
        if grant.service and grant.service != self._settings.service:
            raise RequestInvalid(
                f"service is {grant.service[:80]!r}, and this registry's tokens are for {self._settings.service!r};"
                " ask for the service that the challenge names"
            )
        principal, user = await self._holder(grant)
        scopes = cut(grant.scopes, principal)
        return self._tokens.issue(user, scopes, self._settings.token_ttl_s).render()

    def close(self) -> None:
        """Stop checking passwords."""
        self._passwords.close()

    def _anonymous(self, grants: Mapping[str, frozenset[str]] | None = None) -> Principal:
        if self.open:
            return _OPEN
        pull = frozenset({Action.PULL} if self._settings.anonymous_pull else ())
        return Principal(ANONYMOUS, pull, grants=grants, anonymous=True)

    async def _recognise(
        self, authorization: bytes | None, origin: str, wanted: Iterable[Scope]
    ) -> tuple[Principal, float]:
        """The principal, and for how many seconds the header proves it."""
        if self.open:
            return _OPEN, inf
        match parse_authorization(authorization):
            case None | BasicCredentials("", ""):  # what some clients send when they have no credentials
                return self._anonymous(), inf
            case BasicCredentials(name, password):
                user = await self._passwords.check(name, password)
                if user is not None:
                    return Principal.of(user), MATCH_LIFE_S
                reason = "name or password is wrong; log in again"
            case BearerCredentials(token):
                proven = self._tokens.verify(token)
                if proven is not None:
                    claims, user = proven
                    principal = self._anonymous(claims.grants) if user is None else Principal.of(user, claims.grants)
                    return principal, claims.expires_at - self._tokens.clock()
                reason = "the token is not valid here or not any more; ask for a new one"
            case Malformed(reason):
                pass
        raise self._unauthorized(reason, origin, wanted, "invalid_token")

    async def _holder(self, grant: TokenRequest) -> tuple[Principal, User | None]:
        if self.open:
            return _OPEN, None
        reason = "log in: tokens are for users"
        match grant.credentials:
            case None | BasicCredentials("", ""):
                if self._settings.anonymous_pull:
                    return self._anonymous(), None
            case BasicCredentials(name, password):
                user = await self._passwords.check(name, password)
                if user is not None:
                    return Principal.of(user), user
                reason = "name or password is wrong; log in again"
            case BearerCredentials():
                reason = "a token does not buy a token; send a name and password"
            case Malformed(reason):
                pass
        raise Unauthorized(reason, challenge=basic_challenge(self._settings.service))

    def _why(self, principal: Principal) -> str:
        if principal.grants is not None:
            return "the token is not for this; ask for one with the scope that the challenge names"
        if not len(self._users):
            return "no users are configured, so nobody may do this; add one with `sluice user add`"
        return "log in: this needs a user"

    def _unauthorized(self, reason: str, origin: str, wanted: Iterable[Scope], error: str | None) -> Unauthorized:
        settings = self._settings
        if settings.challenge == "basic":
            return Unauthorized(reason, challenge=basic_challenge(settings.service))
        realm = settings.realm or f"{origin}/token"
        return Unauthorized(reason, challenge=bearer_challenge(realm, settings.service, wanted, error))

    def _remember(self, authorization: bytes | None, entry: tuple[float, int, Principal]) -> None:
        if self._remembered.pop(authorization, None) is None:
            self._remembered_bytes += len(authorization or b"")
        self._remembered[authorization] = entry
        while len(self._remembered) > REMEMBERED_MAX or self._remembered_bytes > REMEMBERED_BYTES_MAX:
            oldest = next(iter(self._remembered))
            del self._remembered[oldest]
            self._remembered_bytes -= len(oldest or b"")

    def _forget(self) -> None:
        self._remembered.clear()
        self._remembered_bytes = 0


def wanted_scopes(action: Action | None, repository: Repository | None) -> tuple[Scope, ...]:
    """The scopes that a challenge names, so that the client's next token fits what it tried to do."""
    if action is None or action is Action.ADMIN:
        return ()
    if repository is None:
        return (Scope("registry", "catalog", frozenset({"*"})),)
    return (Scope("repository", repository, _ASKED_FOR.get(action, frozenset({action.value}))),)


def cut(scopes: Iterable[Scope], principal: Principal) -> tuple[Scope, ...]:
    """The part of ``scopes`` that ``principal`` may have: never more than was asked for, nor than is allowed.

    ``*`` asks for every action there is in a repository. Types and names that do not exist here are left out.
    """
    parts = (Scope(scope.type, scope.name, _granted(scope, principal)) for scope in scopes)
    return tuple(part for part in parts if part.actions)


def _granted(scope: Scope, principal: Principal) -> frozenset[str]:
    if (scope.type, scope.name) == ("registry", "catalog"):
        return scope.actions & {"*"} if principal.allows(Action.CATALOG) else _NONE
    if scope.type != "repository":
        return _NONE
    try:
        repository = parse_repository(scope.name)
    except NameInvalid:
        return _NONE
    asked = [action for action in _IN_REPOSITORY if action.value in scope.actions or "*" in scope.actions]
    return frozenset(action.value for action in asked if principal.allows(action, repository))

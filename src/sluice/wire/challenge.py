"""Challenges and scopes: what a 401 asks for, in the words of the Docker token protocol. PURE.

``server.access`` builds the challenge that sends a client to the token endpoint; the endpoint parses the scopes that
the client brings from it. Sources: RFC 9110 section 11.6.1, RFC 6750 section 3 and the "Token Authentication
Specification" and "Token Scope Documentation" of the Docker registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sluice.errors import RequestInvalid

SCOPE_LENGTH_MAX = 512
"""Characters of one scope; a repository name has 255 at most."""
SCOPES_MAX = 64
"""Scopes in one request."""

_SCOPE = re.compile(
    r"(?P<type>[a-z0-9]+(?:\([a-z0-9]+\))?):(?P<name>[A-Za-z0-9._:/*-]+):(?P<actions>(?:[a-z]+|\*)(?:,(?:[a-z]+|\*))*|)",
    re.ASCII,
)
_UNPRINTABLE = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be done to what: ``type`` is ``repository`` or ``registry``; ``name`` may hold colons, as in
    ``registry.test:5000/app``; ``actions`` are words such as ``pull``, or ``*``. No actions grant nothing."""

    type: str
    name: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scope(text: str) -> Scope:
    """Parse ``repository:team/app:pull,push``; raises RequestInvalid.

    The type ends at the first colon and the actions begin after the last, whatever the name between them holds.
    """
    match = _SCOPE.fullmatch(text) if len(text) <= SCOPE_LENGTH_MAX else None
    if match is None:
        raise RequestInvalid(
            f"scope {text[:160]!r} is invalid: expected <type>:<name>:<action>[,<action>…] of up to {SCOPE_LENGTH_MAX}"
            " characters, as in repository:team/app:pull,push"
        )
    actions = match["actions"]
    return Scope(match["type"], match["name"], frozenset(actions.split(",")) if actions else frozenset())


def parse_scopes(values: Iterable[str]) -> tuple[Scope, ...]:
    """Parse ``scope`` parameters, each of which may hold several scopes between spaces; raises RequestInvalid."""
    texts = [text for value in values for text in value.split(" ") if text]
    if len(texts) > SCOPES_MAX:
        raise RequestInvalid(f"{len(texts)} scopes are asked for at once; at most {SCOPES_MAX} are allowed")
    return tuple(parse_scope(text) for text in texts)


def bearer_challenge(realm: str, service: str, scopes: Iterable[Scope], error: str | None = None) -> str:
    """The value of ``WWW-Authenticate`` that sends a client to the token endpoint at the URL ``realm``.

    ``error`` is a code of RFC 6750 section 3.1, such as ``invalid_token``; None where no token came.
    """
    scope = " ".join(str(scope) for scope in scopes)
    parameters = [("realm", realm), ("service", service), ("scope", scope), ("error", error or "")]
    return "Bearer " + ",".join(f"{name}={_quoted(value)}" for name, value in parameters if value)


def basic_challenge(realm: str) -> str:
    """The value of ``WWW-Authenticate`` that asks for a name and password, in UTF-8 (RFC 7617 section 2.1)."""
    return f'Basic realm={_quoted(realm)},charset="UTF-8"'


def _quoted(text: str) -> str:
    """A quoted-string (RFC 9110 section 5.6.4). What it cannot hold becomes ``?``, so that no value ends the header."""
    escaped = _UNPRINTABLE.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

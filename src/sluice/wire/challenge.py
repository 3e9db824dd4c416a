"""Challenges and scopes: what a 401 asks for, in the words of the Docker token protocol. PURE.

``server.access`` builds the challenge that sends a client to the token endpoint; the endpoint parses the scopes that
the client brings from it. Sources: RFC 9110 section 11.6.1, RFC 6750 section 3 and the "Token Authentication
Specification" and "Token Scope Documentation" of the Docker registry.

The other way round, ``parse_challenges`` reads what an upstream asks of ourselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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

CHALLENGE_LENGTH_MAX = 8 * 1024
"""Characters of all challenges of one answer together; what follows is not read."""
_TCHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TCHAR})[ \t]*=[ \t]*(?:({_TCHAR})|"((?:[^"\\]|\\.)*)")[ \t]*(?=,|$)', re.DOTALL)
_SCHEME = re.compile(rf"({_TCHAR})(?:[ ]+|[ \t]*(?=,|$))")
_TOKEN68 = re.compile(r"([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_BETWEEN = re.compile(r"[ \t,]*")
_REST = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)*', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


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


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of an answer: ``scheme`` and the parameters' names are lower-case. Challenges with a token
    instead of parameters (``Negotiate``) have it in ``token``."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    token: str | None = None


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Read the values of all ``WWW-Authenticate`` headers, each of which may hold several challenges.

    The grammar is RFC 9110 section 11.6.1. Never raises: what cannot be read is left out, and so is whatever follows
    after ``CHALLENGE_LENGTH_MAX`` characters. Of a parameter that is there twice the first counts.
    """
    found: list[Challenge] = []
    left = CHALLENGE_LENGTH_MAX
    for value in values:
        found += _challenges(value[:left])
        left -= min(left, len(value))
    return tuple(found)


def _challenges(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] | None = None  # those of the challenge that is being read
    position = 0
    while True:
        position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        if position >= len(text):
            return found
        parameter = _PARAMETER.match(text, position)
        if parameter is not None:
            if parameters is not None:
                parameters.setdefault(parameter[1].lower(), _parameter_value(parameter))
            position = parameter.end()
            continue
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            position = max(_REST.match(text, position).end(), position + 1)  # type: ignore[union-attr]
            continue
        position = scheme.end()
        token = None if _PARAMETER.match(text, position) else _TOKEN68.match(text, position)
        position = token.end() if token else position
        parameters = {}
        found.append(Challenge(scheme[1].lower(), parameters, token[1] if token else None))


def _parameter_value(found: re.Match[str]) -> str:
    return found[2] if found[2] is not None else _ESCAPED.sub(r"\1", found[3])

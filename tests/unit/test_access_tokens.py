"""Tokens prove what they were issued for, to this registry, for their time, and nothing when anything is changed."""

from __future__ import annotations

import json
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
import pytest

from sluice.errors import ConfigInvalid, RequestInvalid
from sluice.server.tokens import (
    CATALOG,
    KEY_FILE_NAME,
    NOT_BEFORE_LEEWAY_S,
    TOKEN_LENGTH_MAX,
    TokenRequest,
    Tokens,
)
from sluice.server.users import Role, User, Users
from sluice.wire.challenge import Scope
from sluice.wire.credentials import BasicCredentials, Malformed

TTL_S = 300
SCOPES = (
    Scope("repository", "team/app", frozenset({"pull", "push"})),
    Scope("registry", "catalog", frozenset({"*"})),
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """Tokens on a real directory with one user, and the clock that they are told the time by."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.clock = Clock()
        self.users = Users(data, cost=4, clock=self.clock)
        self.alice: User = self.users.add("alice", "secret", Role.WRITE)
        self.tokens = self.reopened()

    def reopened(self, service: str = "sluice") -> Tokens:
        return Tokens(self.data, self.users, service, clock=self.clock)

    def issue(self) -> str:
        return self.tokens.issue(self.alice, SCOPES, TTL_S).token


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


def _claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_token_proves_its_user_and_scopes(issuer: Issuer) -> None:
    """What verify returns is what was issued; asking again (from memory) gives the same."""
    token = issuer.issue()

    for _ in range(2):
        found = issuer.tokens.verify(token)
        assert found is not None
        claims, user = found
        assert (claims.subject, user) == ("alice", issuer.alice)
        assert claims.grants == {"team/app": {"pull", "push"}, CATALOG: {"*"}}
        assert claims.expires_at == issuer.clock.now + TTL_S


def test_token_has_the_claims_of_the_specification(issuer: Issuer) -> None:
    """The claims are the Docker token specification's and the record's fingerprint; no secret is among them."""
    token = issuer.issue()
    claims = _claims(token)

    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    assert len(jwt.get_unverified_header(token)["kid"]) == 16
    assert claims["access"] == [
        {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
        {"type": "registry", "name": "catalog", "actions": ["*"]},
    ]
    assert (claims["iss"], claims["aud"], claims["sub"]) == ("sluice", "sluice", "alice")
    assert (claims["iat"], claims["exp"] - claims["iat"]) == (issuer.clock.now, TTL_S)
    assert claims["iat"] - claims["nbf"] == NOT_BEFORE_LEEWAY_S
    assert claims["jti"] != _claims(issuer.issue())["jti"]
    assert issuer.alice.password_hash not in json.dumps(claims)


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(
    ("seconds", "valid"),
    [(-NOT_BEFORE_LEEWAY_S - 1, False), (-NOT_BEFORE_LEEWAY_S, True), (TTL_S - 1, True), (TTL_S, False)],
)
def test_token_has_its_time(issuer: Issuer, seconds: int, valid: bool, remembered: bool) -> None:
    """A token begins ten seconds early, for clocks that differ, and ends on the second, remembered or not."""
    token = issuer.issue()
    if remembered and seconds > 0:
        assert issuer.tokens.verify(token) is not None

    issuer.clock.now += seconds

    assert valid == (issuer.tokens.verify(token) is not None)


def test_token_ends_with_its_user(issuer: Issuer) -> None:
    """A remembered token ends with a change of the user, and does not come back with a namesake."""
    token = issuer.issue()
    assert issuer.tokens.verify(token) is not None

    issuer.users.remove("alice")
    gone = issuer.tokens.verify(token)
    issuer.users.add("alice", "secret", Role.WRITE)

    assert (gone, issuer.tokens.verify(token)) == (None, None)


def test_token_survives_a_restart(issuer: Issuer) -> None:
    """The key is kept, so a restart logs nobody out; it is 0600."""
    token = issuer.issue()

    assert issuer.reopened().verify(token) is not None
    assert stat.S_IMODE((issuer.data / KEY_FILE_NAME).stat().st_mode) == 0o600


def test_token_of_another_registry_is_worthless(issuer: Issuer, tmp_path: Path) -> None:
    """Neither another key nor another service's token passes, though all else is equal."""
    (tmp_path / "other").mkdir()
    other = Tokens(tmp_path / "other", issuer.users, "sluice", clock=issuer.clock)

    assert issuer.tokens.verify(other.issue(issuer.alice, SCOPES, TTL_S).token) is None
    assert issuer.reopened("another").verify(issuer.issue()) is None


def test_every_changed_character_is_noticed(issuer: Issuer) -> None:
    """Changing any character but the last of a part (whose low bits mean nothing) spoils the token."""
    token = issuer.issue()
    ends = {index - 1 for index, character in enumerate(token) if character == "."} | {len(token) - 1}

    for index in set(range(len(token))) - ends:
        changed = token[:index] + ("A" if token[index] != "A" else "B") + token[index + 1 :]
        assert issuer.tokens.verify(changed) is None


def test_unsigned_and_foreign_algorithms_are_refused(issuer: Issuer) -> None:
    """alg=none and other algorithms over the same claims prove nothing."""
    head, body, _ = issuer.issue().split(".")
    header = json.loads(urlsafe_b64decode(head + "=="))
    unsigned = urlsafe_b64encode(json.dumps(header | {"alg": "none"}).encode()).rstrip(b"=").decode()
    key = bytes.fromhex((issuer.data / KEY_FILE_NAME).read_text().split()[0])

    assert issuer.tokens.verify(f"{unsigned}.{body}.") is None
    assert issuer.tokens.verify(jwt.encode(_claims(issuer.issue()), key * 2, "HS512")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"access": None},
        {"access": [1]},
        {"access": [{"type": "repository", "name": "x"}]},
        {"access": [{"type": "repository", "name": 1, "actions": []}]},
        {"access": [{"type": "repository", "name": "x", "actions": [[]]}]},
        {"exp": "soon"},
        {"nbf": None},
        {"sub": ["alice"]},
        {"aud": "other"},
        {"iss": "other"},
        {"record": ""},
        {"record": None},
        {"sub": "nobody", "record": ""},
        {"record": "é"},
    ],
)
def test_claims_are_checked_even_under_our_signature(issuer: Issuer, changes: dict[str, object]) -> None:
    """A token that an older or newer version with the same key signed is refused when its claims make no sense."""
    key = bytes.fromhex((issuer.data / KEY_FILE_NAME).read_text().split()[0])
    claims = _claims(issuer.issue())
    assert issuer.tokens.verify(jwt.encode(claims, key, "HS256")) is not None

    assert issuer.tokens.verify(_encode(claims | changes, key)) is None


def _encode(claims: dict[str, object], key: bytes) -> str:
    """Sign without the library's own look at the claims."""
    return jwt.api_jws.encode(json.dumps(claims).encode(), key, "HS256")


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é", "\udcff", "x" * 100_000, "eyJhbGciOiJIUzI1NiJ9..x"])
def test_garbage_proves_nothing(issuer: Issuer, token: str) -> None:
    """What is no token at all is refused like a false one."""
    assert issuer.tokens.verify(token) is None


@pytest.mark.parametrize("content", [b"", b"short", b"g" * 64, b"0" * 65, b"0" * 5000])
def test_damaged_key_stops_the_start(tmp_path: Path, content: bytes) -> None:
    """A key file that is not a key is named; it is not replaced silently."""
    (tmp_path / KEY_FILE_NAME).write_bytes(content)

    with pytest.raises(ConfigInvalid, match=r"token\.key"):
        Tokens(tmp_path, Users(tmp_path), "sluice")
    assert content == (tmp_path / KEY_FILE_NAME).read_bytes()


def test_token_fits_into_a_header(issuer: Issuer) -> None:
    """Scopes are granted up to what fits into one header; more are refused with the remedy."""
    names = ["x" * 200 + str(number) for number in range(64)]
    scopes = [Scope("repository", name, frozenset({"pull"})) for name in names]

    assert len(issuer.tokens.issue(issuer.alice, scopes[:20], TTL_S).token) <= TOKEN_LENGTH_MAX
    with pytest.raises(RequestInvalid, match="fewer scopes"):
        issuer.tokens.issue(issuer.alice, scopes, TTL_S)


def test_request_is_read_from_a_query() -> None:
    """Scopes may be repeated, joined by spaces, and empty; unknown parameters are ignored."""
    query = b"account=a&service=sluice&scope=repository:a:pull%20repository:b:push&scope=&scope=registry:catalog:*&x=1"

    assert TokenRequest.from_query(query, b"Basic YTpi") == TokenRequest(
        "sluice",
        (
            Scope("repository", "a", frozenset({"pull"})),
            Scope("repository", "b", frozenset({"push"})),
            Scope("registry", "catalog", frozenset({"*"})),
        ),
        BasicCredentials("a", "b"),
    )
    assert TokenRequest.from_query(b"", None) == TokenRequest(None, (), None)


def test_request_is_read_from_a_form() -> None:
    """Name and password come from the form, escaped as forms are; without them from the header."""
    form = b"grant_type=password&username=a%40b&password=p%2Bq+r"

    assert TokenRequest.from_form(form, b"nonsense").credentials == BasicCredentials("a@b", "p+q r")
    assert isinstance(TokenRequest.from_form(b"grant_type=password", b"nonsense").credentials, Malformed)
    assert TokenRequest.from_form(b"grant_type=password", b"Basic YTpi").credentials == BasicCredentials("a", "b")


@pytest.mark.parametrize("query", [b"scope=nonsense", b"scope=%ff", b"%", b"scope=repository:a:pull&" * 101])
def test_bad_requests_are_refused(query: bytes) -> None:
    """What cannot be read is 400, from a query and from a form."""
    with pytest.raises(RequestInvalid):
        TokenRequest.from_query(query, None)
    with pytest.raises(RequestInvalid):
        TokenRequest.from_form(b"grant_type=password&" + query, None)

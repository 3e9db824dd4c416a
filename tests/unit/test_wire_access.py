"""Credentials, challenges and scopes."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import RequestInvalid
from sluice.wire.challenge import (
    SCOPE_LENGTH_MAX,
    SCOPES_MAX,
    Scope,
    basic_challenge,
    bearer_challenge,
    parse_scope,
    parse_scopes,
)
from sluice.wire.credentials import (
    AUTHORIZATION_LENGTH_MAX,
    BasicCredentials,
    BearerCredentials,
    Malformed,
    parse_authorization,
)

plain = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(32)), "\x7f"]), max_size=30
)


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


@given(plain.filter(lambda name: ":" not in name), plain, st.sampled_from([b"Basic", b"basic", b"BASIC"]))
def test_name_and_password_come_back(name: str, password: str, scheme: bytes) -> None:
    """The first colon ends the name; the password may hold more of them and any printable character."""
    header = scheme + b" " + base64.b64encode(f"{name}:{password}".encode())
    assert BasicCredentials(name, password) == parse_authorization(header)


def test_a_token_comes_back() -> None:
    """The scheme's case does not matter, the token's does."""
    assert BearerCredentials("aA0-._~+/==") == parse_authorization(b" bEARER  aA0-._~+/== ")


def test_no_header_is_no_credentials() -> None:
    """Absent is not malformed: it may be answered anonymously."""
    assert parse_authorization(None) is None


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "neither Basic nor Bearer"),
        (b"Basic", "no colon"),
        (b"Digest x", "neither Basic nor Bearer"),
        (b"Basic\tYTpi", "neither Basic nor Bearer"),
        (b"Basic !!!!", "not Base64"),
        (b"Basic YTpi\xff", "not Base64"),
        (b"Basic YTp", "not Base64"),
        (b"Basic YTpi YTpi", "not Base64"),
        (basic(b"a:\xff"), "not UTF-8"),
        (basic(b"name"), "no colon"),
        (basic(b"a:b\n"), "control character"),
        (basic(b"a\x00:b"), "control character"),
        (b"Bearer", "token is empty"),
        (b"Bearer a b", "token is empty or has"),
        (b"Bearer a=b", "token is empty or has"),
        (b'Bearer "a"', "token is empty or has"),
        (b"Bearer \xff", "token is empty or has"),
        (b"Bearer " + b"a" * AUTHORIZATION_LENGTH_MAX, "longer than 8192 bytes"),
    ],
)
def test_a_header_that_proves_nothing_is_malformed(header: bytes, reason: str) -> None:
    """It is a value with a reason, not an exception."""
    found = parse_authorization(header)
    assert isinstance(found, Malformed)
    assert reason in found.reason


def test_the_longest_header_is_read() -> None:
    """AUTHORIZATION_LENGTH_MAX bytes are allowed."""
    token = "a" * (AUTHORIZATION_LENGTH_MAX - len("Bearer "))
    assert BearerCredentials(token) == parse_authorization(f"Bearer {token}".encode())


def test_secrets_do_not_show() -> None:
    """Neither a password nor a token is in what a log or a traceback would print."""
    shown = repr([parse_authorization(basic(b"name:hunter2")), parse_authorization(b"Bearer hunter2")])
    assert ("name" in shown, "hunter2" in shown) == (True, False)


@given(st.binary(max_size=60) | st.binary(max_size=40).map(basic))
def test_any_header_is_some_value(header: bytes) -> None:
    """Nothing that a client can send raises."""
    assert isinstance(parse_authorization(header), BasicCredentials | BearerCredentials | Malformed)


names = st.from_regex(r"[A-Za-z0-9._:/*-]{1,40}", fullmatch=True)
actions = st.frozensets(st.sampled_from(["pull", "push", "delete", "*"]))
scopes = st.builds(Scope, st.sampled_from(["repository", "registry", "repository(plugin)"]), names, actions)


@given(scopes)
def test_a_scope_survives_being_written_and_parsed(scope: Scope) -> None:
    """Whatever colons its name holds."""
    assert scope == parse_scope(str(scope))


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("repository:team/app:pull,push", Scope("repository", "team/app", frozenset({"pull", "push"}))),
        ("repository:host:5000/app:pull", Scope("repository", "host:5000/app", frozenset({"pull"}))),
        ("registry:catalog:*", Scope("registry", "catalog", frozenset({"*"}))),
        ("repository:a:pull,pull", Scope("repository", "a", frozenset({"pull"}))),
        ("repository:a:", Scope("repository", "a", frozenset())),
    ],
)
def test_scopes_of_the_token_protocol(text: str, scope: Scope) -> None:
    """The type ends at the first colon, the actions begin after the last."""
    assert scope == parse_scope(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "repository", "repository:a", ":a:pull", "repository::pull", "repository:a:,", "repository:a:pull,"),
        *("repository:a:PULL", 'repository:a":pull', "repository:a b:pull", "repository:ä:pull"),
        *("repository:a:pull\n", "Repository:a:pull", "repository:" + "a" * SCOPE_LENGTH_MAX + ":pull"),
    ],
)
def test_other_scopes_are_refused(text: str) -> None:
    """The message shows the form expected."""
    with pytest.raises(RequestInvalid, match="expected <type>:<name>:<action>"):
        parse_scope(text)


def test_scopes_come_repeated_and_between_spaces() -> None:
    """Both ways of asking for several at once, up to a limit."""
    found = parse_scopes(["repository:a:pull  repository:b:pull", "", "repository:c:pull"])
    assert [scope.name for scope in found] == ["a", "b", "c"]
    assert len(parse_scopes([" ".join(["repository:a:pull"] * SCOPES_MAX)])) == SCOPES_MAX
    with pytest.raises(RequestInvalid, match="65 scopes"):
        parse_scopes(["repository:a:pull"] * (SCOPES_MAX + 1))


def test_challenges_are_those_that_clients_know() -> None:
    """Realm, service and scope, with an error only where there is one."""
    wanted = [
        Scope("repository", "team/app", frozenset({"push", "pull"})),
        Scope("registry", "catalog", frozenset("*")),
    ]
    realm = "https://registry.test:5001/token"
    assert bearer_challenge(realm, "sluice", []) == f'Bearer realm="{realm}",service="sluice"'
    assert (
        f'Bearer realm="{realm}",service="sluice",scope="repository:team/app:pull,push registry:catalog:*"'
        ',error="invalid_token"'
    ) == bearer_challenge(realm, "sluice", wanted, "invalid_token")
    assert basic_challenge("sluice") == 'Basic realm="sluice",charset="UTF-8"'


@given(st.text(), st.text())
def test_no_value_breaks_out_of_its_quotes(realm: str, service: str) -> None:
    """Quotes and backslashes are escaped; what a header cannot hold is replaced."""
    header = bearer_challenge(realm + "r", service + "s", [])
    quoted = r'"((?:[^"\\]|\\["\\])*)"'
    match = re.fullmatch(rf"Bearer realm={quoted},service={quoted}", header)
    assert match is not None
    assert header.isascii()
    assert header.isprintable()
    unescaped = [re.sub(r"\\(.)", r"\1", text) for text in match.groups()]
    assert [re.sub("[^ -~]", "?", text) for text in (realm + "r", service + "s")] == unescaped

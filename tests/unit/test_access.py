"""Roles, prefixes, credentials and challenges: who is who, who may what, and for how long that is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from access_gate import APP, CHALLENGE, CLOSED, COST, OPEN, ORIGIN, PUBLIC, Gate, basic, gate_at, run, user_like
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import Denied, Unauthorized
from sluice.oci.reference import Repository
from sluice.server.access import (
    REMEMBERED_MAX,
    Action,
    Principal,
    wanted_scopes,
)
from sluice.server.passwords import MATCH_LIFE_S
from sluice.server.users import Role, Users


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.READ, {"pull", "catalog"}),
        (Role.WRITE, {"pull", "push", "delete", "catalog"}),
        (Role.ADMIN, {"pull", "push", "delete", "catalog", "admin"}),
    ],
)
def test_roles_allow_what_they_are_for(role: Role, allowed: set[str]) -> None:
    """read looks, write changes, admin does everything."""
    principal = Principal.certificate(role)

    found = {a.value for a in Action if principal.allows(a, None if a in {"catalog", "admin"} else APP)}

    assert allowed == found


@pytest.mark.parametrize(
    ("prefix", "repository", "within"),
    [
        ("team", "team", True),
        ("team", "team/app", True),
        ("team", "team/app/base", True),
        ("team", "teamx", False),
        ("team", "teamx/app", False),
        ("team", "other/team", False),
        ("team/app", "team", False),
        ("team/app", "team/app", True),
        ("team/app", "team/app2", False),
        ("team/app", "team/app-2", False),
        ("a", "team/app", False),
    ],
)
def test_prefixes_end_at_segments(prefix: str, repository: str, within: bool) -> None:
    """A prefix covers itself and what is below it, never what merely begins with the same letters."""
    assert within == user_like(Role.WRITE, prefix).allows(Action.PUSH, repository)
    assert within == user_like(Role.READ, "zzz", prefix).allows(Action.PULL, repository)


def test_grants_narrow_and_never_widen() -> None:
    """With a token, both the user's rules and the token's scopes must allow."""
    grants = {"team/app": frozenset({"pull", "push"}), "other": frozenset({"pull"})}
    principal = replace(user_like(Role.READ, "team"), grants=grants)

    asked = [(a, r) for a in (Action.PULL, Action.PUSH) for r in ("team/app", "team/two", "other")]

    assert [pair for pair in asked if principal.allows(*pair)] == [(Action.PULL, "team/app")]
    assert not principal.allows(Action.CATALOG)
    assert principal.could(Action.PULL, "team/two")


# Without users


def test_open_registry_is_everybodys(tmp_path: Path) -> None:
    """Without users on loopback anybody may do anything, whatever credentials an old login left behind."""
    gate = gate_at(tmp_path, OPEN)

    for header in (None, b"nonsense", basic("old"), b"Bearer old", basic("", "")):
        who = gate.who(header)
        assert (who.name, who.anonymous) == ("anonymous", True)
        assert all(who.allows(action, APP) for action in Action)
        gate.access.require(who, None, None, ORIGIN)


def test_first_user_closes_an_open_registry_at_once(tmp_path: Path) -> None:
    """Adding a user ends open access for the very next request, also for remembered ones and issued tokens."""
    gate = gate_at(tmp_path, OPEN)
    token = gate.bearer("repository:team/app:pull,push")
    assert gate.who(None).allows(Action.PUSH, APP)
    assert gate.who(token).allows(Action.PUSH, APP)

    gate.users.add("alice", "secret", Role.ADMIN)

    assert gate.access.cached(None) is None
    assert not gate.who(None).allows(Action.PULL, APP)
    assert not gate.who(token).allows(Action.PULL, APP)
    assert gate.who(basic("alice")).allows(Action.PUSH, APP)


def test_first_user_added_by_another_process_closes_it_too(tmp_path: Path) -> None:
    """The same within little more than a second when the user comes from another process."""
    gate = gate_at(tmp_path, OPEN)
    assert gate.who(None).allows(Action.PUSH, APP)

    Users(tmp_path, cost=COST).add("alice", "secret", Role.ADMIN)
    gate.clock.now += 1.1

    assert gate.access.cached(None) is None
    assert not gate.who(None).allows(Action.PULL, APP)


def test_last_user_removed_by_damage_does_not_open(tmp_path: Path) -> None:
    """Deleting users.json under a running server opens nothing."""
    gate = gate_at(tmp_path, OPEN)
    gate.users.add("alice", "secret", Role.ADMIN)

    (tmp_path / "users.json").unlink()
    gate.clock.now += 2

    assert not gate.who(None).allows(Action.PULL, APP)


def test_closed_without_users_nobody_may_anything(tmp_path: Path) -> None:
    """Off loopback a registry without users fails closed, says what to do, and issues no tokens."""
    gate = gate_at(tmp_path)
    who = gate.who(None)

    for action in Action:
        assert not who.allows(action, APP)
    with pytest.raises(Unauthorized, match="sluice user add"):
        gate.access.require(who, Action.PULL, APP, ORIGIN)
    with pytest.raises(Unauthorized):
        gate.access.require(who, None, None, ORIGIN)
    with pytest.raises(Unauthorized):
        gate.token("scope=repository:team/app:pull")


def test_anonymous_pull_pulls_and_nothing_else(tmp_path: Path) -> None:
    """With anonymous_pull anybody may pull from anywhere; /v2/ still asks, so that clients learn to log in."""
    gate = gate_at(tmp_path, PUBLIC)
    who = gate.who(None)

    assert [action for action in Action if who.allows(action, APP)] == [Action.PULL]
    with pytest.raises(Unauthorized):
        gate.access.require(who, None, None, ORIGIN)
    for anonymous in (None, basic("", "")):
        token = gate.bearer("repository:team/app:pull,push,delete", anonymous)
        holder = gate.who(token)
        gate.access.require(holder, None, None, ORIGIN)
        assert [action for action in Action if holder.allows(action, APP)] == [Action.PULL]


# Credentials


def test_basic_credentials_are_theuser_like(tmp_path: Path) -> None:
    """The right password is the user with role and prefixes; it is remembered for its time, then asked for anew."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.WRITE, ["team"])

    who = gate.who(basic("alice"))

    assert (who.name, who.anonymous, who.grants) == ("alice", False, None)
    assert (who.allows(Action.PUSH, APP), who.allows(Action.PUSH, "other")) == (True, False)
    gate.access.require(who, None, None, ORIGIN)
    gate.clock.now += MATCH_LIFE_S - 1
    assert gate.access.cached(basic("alice")) is who
    gate.clock.now += 1
    assert gate.access.cached(basic("alice")) is None


@pytest.mark.parametrize(
    "header",
    [
        basic("alice", "wrong"),
        basic("nobody"),
        b"Basic !",
        b"Basic",
        b"",
        b"Bearer",
        b"Bearer a.b.c",
        b"Digest x",
        b"\xff",
    ],
)
def test_bad_credentials_are_challenged(tmp_path: Path, header: bytes) -> None:
    """Whatever does not prove anybody is 401 with a challenge for what was wanted, also with anonymous pull."""
    gate = gate_at(tmp_path, PUBLIC)
    gate.users.add("alice", "secret", Role.READ)

    with pytest.raises(Unauthorized) as caught:
        run(gate.access.identify(header, ORIGIN, wanted_scopes(Action.PULL, APP)))

    assert caught.value.challenge == f'{CHALLENGE},scope="repository:team/app:pull",error="invalid_token"'
    assert gate.access.cached(header) is None
    assert "secret" not in caught.value.message


def test_change_ends_remembered_passwords_and_tokens(tmp_path: Path) -> None:
    """After replacing or removing a user neither the header nor a token from before works, without waiting."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.ADMIN)
    headers = [basic("alice"), gate.bearer("repository:team/app:pull", basic("alice"))]
    for header in headers:
        assert gate.who(header).allows(Action.PULL, APP)

    gate.users.replace("alice", "new", Role.ADMIN)
    for header in headers:
        with pytest.raises(Unauthorized):
            gate.who(header)
    headers = [basic("alice", "new"), gate.bearer("repository:team/app:pull", basic("alice", "new"))]
    gate.users.remove("alice")
    for header in headers:
        with pytest.raises(Unauthorized):
            gate.who(header)


def test_narrowed_role_ends_wider_tokens(tmp_path: Path) -> None:
    """A token issued to a writer is worthless once the user may only read, even with the same password."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.WRITE)
    token = gate.bearer("repository:team/app:pull,push", basic("alice"))

    gate.users.replace("alice", "secret", Role.READ)

    with pytest.raises(Unauthorized):
        gate.who(token)


def test_other_users_keep_their_tokens(tmp_path: Path) -> None:
    """A change to one user costs the others nothing but a look-up."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.WRITE)
    token = gate.bearer("repository:team/app:pull", basic("alice"))

    gate.users.add("bob", "secret", Role.ADMIN)

    assert gate.who(token).allows(Action.PULL, APP)


def test_remembered_headers_are_bounded(tmp_path: Path) -> None:
    """More headers than fit push out the oldest, whatever their number."""
    gate = gate_at(tmp_path, OPEN)

    async def flood() -> None:
        for number in range(REMEMBERED_MAX + 1):
            await gate.access.identify(b"Bearer %d" % number, ORIGIN)

    run(flood())

    assert gate.access.cached(b"Bearer 0") is None
    assert gate.access.cached(b"Bearer 1") is not None


def test_large_headers_are_bounded_in_bytes(tmp_path: Path) -> None:
    """A thousand headers of 10 KB leave the newest 8 MiB remembered."""
    gate = gate_at(tmp_path, OPEN)

    async def flood() -> None:
        for number in range(1000):
            await gate.access.identify(b"%d" % number + b"x" * 10_000, ORIGIN)

    run(flood())

    kept = [number for number in range(1000) if gate.access.cached(b"%d" % number + b"x" * 10_000) is not None]
    assert kept == list(range(1000 - 838, 1000))


# Refusals


@pytest.mark.parametrize(
    ("action", "repository", "scope"),
    [
        (Action.PULL, APP, "repository:team/app:pull"),
        (Action.PUSH, APP, "repository:team/app:pull,push"),
        (Action.DELETE, APP, "repository:team/app:delete"),
        (Action.CATALOG, None, "registry:catalog:*"),
        (None, None, ""),
    ],
)
def test_challenge_names_what_would_do(
    tmp_path: Path, action: Action | None, repository: Repository | None, scope: str
) -> None:
    """An anonymous caller is told where to log in and with which scope; a client that follows it gets through."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.ADMIN)

    with pytest.raises(Unauthorized) as caught:
        gate.access.require(gate.who(None), action, repository, ORIGIN)

    assert caught.value.challenge == CHALLENGE + (f',scope="{scope}"' if scope else "")
    holder = gate.who(gate.bearer(scope, basic("alice")))
    gate.access.require(holder, action, repository, ORIGIN)


def test_token_for_something_else_is_sent_for_another(tmp_path: Path) -> None:
    """A token too narrow for what its user may do is 401 with the scope to ask for, not 403."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.WRITE)
    holder = gate.who(gate.bearer("repository:team/app:pull", basic("alice")))

    with pytest.raises(Unauthorized) as caught:
        gate.access.require(holder, Action.PUSH, APP, ORIGIN)

    assert caught.value.challenge == f'{CHALLENGE},scope="repository:team/app:pull,push",error="insufficient_scope"'


@pytest.mark.parametrize("with_token", [False, True])
def test_known_user_without_the_right_is_denied(tmp_path: Path, with_token: bool) -> None:
    """Logging in again would not help: 403, naming user, action and repository."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.READ)
    header = gate.bearer("repository:team/app:pull,push", basic("alice")) if with_token else basic("alice")

    with pytest.raises(Denied, match="'alice' may not push in repository team/app"):
        gate.access.require(gate.who(header), Action.PUSH, APP, ORIGIN)


def test_realm_and_basic_challenge_are_settings(tmp_path: Path) -> None:
    """A given realm replaces the origin's; the basic challenge offers no token endpoint."""
    elsewhere = gate_at(tmp_path, replace(CLOSED, realm="https://login.example.org/t"))
    plain = gate_at(tmp_path, replace(CLOSED, challenge="basic"))
    challenges = []
    for gate in (elsewhere, plain):
        with pytest.raises(Unauthorized) as caught:
            gate.access.require(gate.who(None), None, None, ORIGIN)
        challenges.append(caught.value.challenge)

    assert challenges == [
        'Bearer realm="https://login.example.org/t",service="sluice"',
        'Basic realm="sluice",charset="UTF-8"',
    ]


@given(st.binary(max_size=300))
def test_any_header_is_a_principal_or_a_clear_refusal(header: bytes) -> None:
    """No Authorization header, whatever its bytes, is a failure of ours."""
    gate = HELD[0]
    try:
        proven = gate.who(header).anonymous
    except Unauthorized as error:
        proven = error.challenge.startswith("Bearer ")

    assert proven


HELD: list[Gate] = []


@pytest.fixture(autouse=True, scope="module")
def _held(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One registry with a user, for the property above: a directory per example would be slow."""
    gate = gate_at(tmp_path_factory.mktemp("held"))
    gate.users.add("alice", "secret", Role.READ)
    HELD.append(gate)

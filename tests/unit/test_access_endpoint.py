"""The token endpoint: nobody gets a token for more than was asked for and is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from access_gate import OPEN, ORIGIN, basic, gate_at, run, user_like
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import RequestInvalid, Unauthorized
from sluice.server.access import (
    Action,
    Principal,
    cut,
)
from sluice.server.tokens import TokenRequest
from sluice.server.users import Role
from sluice.wire.challenge import Scope


def test_login_is_a_token_for_the_right_password(tmp_path: Path) -> None:
    """What `docker login` asks (no scope) is answered for the right password and refused for any other."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.READ)
    query = "account=alice&client_id=docker&offline_token=true&service=sluice"

    answer = gate.token(query, basic("alice"))

    assert sorted(answer) == ["access_token", "expires_in", "issued_at", "token"]
    assert answer["token"] == answer["access_token"]
    assert (answer["expires_in"], answer["issued_at"]) == (300, "2027-01-15T08:00:00Z")
    gate.access.require(gate.who(b"Bearer " + answer["token"].encode()), None, None, ORIGIN)
    for header in (basic("alice", "wrong"), basic("nobody"), b"Basic !", b"Bearer " + answer["token"].encode(), None):
        with pytest.raises(Unauthorized) as caught:
            gate.token(query, header)
        assert caught.value.challenge.startswith("Basic ")


def test_form_is_a_token_for_the_right_password(tmp_path: Path) -> None:
    """The POST that containerd sends is answered like the GET, and its scopes count."""
    gate = gate_at(tmp_path)
    gate.users.add("alice", "secret", Role.WRITE)
    form = (
        "grant_type=password&client_id=containerd-client&service=sluice&username=alice&password={}"
        "&scope=repository:team/app:pull,push+repository:other:pull"
    )

    def post(body: str) -> bytes:
        return run(gate.access.token(TokenRequest.from_form(body.encode(), None), ORIGIN))

    holder = gate.who(b"Bearer " + json.loads(post(form.format("secret")))["access_token"].encode())

    assert holder.grants == {"team/app": frozenset({"pull", "push"}), "other": frozenset({"pull"})}
    with pytest.raises(Unauthorized):
        post(form.format("wrong"))


@pytest.mark.parametrize("grant_type", ["refresh_token", "authorization_code", "", "x" * 1000])
def test_other_grants_are_refused(grant_type: str) -> None:
    """Only passwords buy tokens; anything else is 400 with OAuth 2's word for it."""
    with pytest.raises(RequestInvalid, match="unsupported_grant_type") as caught:
        TokenRequest.from_form(f"grant_type={grant_type}&refresh_token=x".encode(), None)
    assert caught.value.detail == {"error": "unsupported_grant_type"}


def test_another_service_is_refused(tmp_path: Path) -> None:
    """A token for another service is not ours to give."""
    with pytest.raises(RequestInvalid, match="service is 'other'"):
        gate_at(tmp_path, OPEN).token("service=other")


SCOPES = st.lists(
    st.builds(
        Scope,
        st.sampled_from(["repository", "registry", "repository(plugin)", "user"]),
        st.sampled_from(["team", "team/app", "teamx", "other", "catalog", "Team/App", "../x", "h:5000/team"]),
        st.frozensets(st.sampled_from(["pull", "push", "delete", "*", "admin", "catalog"])),
    ),
    max_size=8,
)
PREFIXES = st.lists(st.sampled_from(["team", "team/app", "other"]), max_size=2)
PRINCIPALS = st.builds(lambda role, prefixes: user_like(role, *prefixes), st.sampled_from(list(Role)), PREFIXES)


def _pairs(scopes: Any) -> set[tuple[str, str, str]]:
    """Every (type, name, action), with ``*`` in a repository standing for all of its actions."""
    found = set()
    for scope in scopes:
        whole = scope.type.startswith("repository") and "*" in scope.actions
        actions = scope.actions | {"pull", "push", "delete"} if whole else scope.actions
        found |= {(scope.type, scope.name, action) for action in actions}
    return found


@given(SCOPES, PRINCIPALS)
def test_granted_is_what_was_asked_and_is_allowed(scopes: list[Scope], principal: Principal) -> None:
    """Granted = requested ∩ allowed, over every action, repository and kind of scope."""

    def allowed(kind: str, name: str, action: str) -> bool:
        if (kind, name, action) == ("registry", "catalog", "*"):
            return principal.allows(Action.CATALOG)
        named = {"team", "team/app", "teamx", "other", "catalog"}
        return (
            kind == "repository"
            and name in named
            and action in {"pull", "push", "delete"}
            and principal.allows(Action(action), name)
        )

    assert {pair for pair in _pairs(scopes) if allowed(*pair)} == _pairs(cut(scopes, principal))

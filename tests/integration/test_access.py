"""Who may do what at a running server: users, roles, prefixes, tokens and anonymous clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from integration.callers import BLOB, USERS, ask, basic, with_users
from integration.samples import EMPTY_CONFIG, artifact_of, encoded, outcome
from sluice.server.admin import SOCKET_NAME, call
from sluice.server.users import Role
from sluice.testing.client import Answer, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

DENIED, UNKNOWN_CALLER = (403, ["DENIED"]), (401, ["UNAUTHORIZED"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """A server with users and one image in four repositories."""
    data = with_users(tmp_path_factory.mktemp("guarded") / "data", USERS)
    with SluiceServer(data) as running:
        client = RegistryClient(running, basic("root"))
        for name in ("team", "team/app", "teamx/app", "shared"):
            client.push_image(name, "v1", [BLOB])
        client.close()
        yield running
        assert "Traceback" not in running.log.read_text("utf-8", "replace")


def challenge(answer: Answer) -> dict[str, str]:
    """The parameters of a Bearer challenge."""
    assert outcome(answer) == UNKNOWN_CALLER
    scheme, _, rest = answer.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', rest))


def token(server: SluiceServer, name: str | None, *scopes: str, password: str = "secret") -> str:
    """Get a token as a client does after a challenge; the value of ``Authorization`` for it."""
    query = urlencode([("service", "sluice"), *(("scope", scope) for scope in scopes)])
    client = RegistryClient(server, None if name is None else basic(name, password))
    answer = client.request("GET", f"/token?{query}")
    client.close()
    assert answer.status == 200, answer
    assert answer.json["token"] == answer.json["access_token"]
    return f"Bearer {answer.json['token']}"


ALLOWED = {
    "reader": {"base", "pull", "catalog"},
    "writer": {"base", "pull", "catalog", "push", "delete"},
    "root": {"base", "pull", "catalog", "push", "delete"},
}
REQUESTS = {
    "base": ("GET", "", 200),
    "pull": ("GET", "shared/manifests/v1", 200),
    "catalog": ("GET", "_catalog", 200),
    "push": ("POST", "shared/blobs/uploads/", 202),
    "delete": ("DELETE", "shared/manifests/absent", 404),
}


@pytest.mark.parametrize("action", REQUESTS)
@pytest.mark.parametrize("name", ALLOWED)
def test_role_says_what_a_user_may_do(guarded: SluiceServer, name: str, action: str) -> None:
    """Each role may do exactly what it is for; the rest is DENIED, since the user is known."""
    method, path, status = REQUESTS[action]
    answer = ask(guarded, method, path, basic(name))
    if action in ALLOWED[name]:
        assert status == answer.status
    else:
        assert outcome(answer) == DENIED


@pytest.mark.parametrize("action", REQUESTS)
@pytest.mark.parametrize(
    "credentials", [None, basic("reader", "wrong"), basic("nobody"), basic("reader", ""), "Bearer x.y.z"]
)
def test_stranger_may_do_nothing(guarded: SluiceServer, credentials: str | None, action: str) -> None:
    """Without credentials, or with wrong ones, every request is UNAUTHORIZED with a challenge."""
    method, path, _ = REQUESTS[action]
    assert challenge(ask(guarded, method, path, credentials))["service"] == "sluice"


@pytest.mark.parametrize(
    ("name", "repository", "allowed"),
    [
        ("team", "team", True),
        ("team", "team/app", True),
        ("team", "teamx/app", False),
        ("team", "shared", False),
        ("app", "team/app", True),
        ("app", "team", False),
        ("app", "shared", True),
    ],
)
def test_prefix_counts_by_segment(guarded: SluiceServer, name: str, repository: str, allowed: bool) -> None:
    """A prefix covers itself and what is below it, not every name that begins like it; also where memory answers."""
    path = f"{repository}/manifests/v1"
    assert [200] * 2 == [ask(guarded, "GET", path, basic("root")).status for _ in range(2)]
    answers = [ask(guarded, method, path, basic(name)) for method in ("GET", "GET", "HEAD")]
    assert [200 if allowed else 403] * 3 == [answer.status for answer in answers]


def test_catalog_shows_what_the_caller_may_pull(guarded: SluiceServer) -> None:
    """Whoever is limited to prefixes does not learn the names of the rest."""
    found = {
        name: ask(guarded, "GET", "_catalog", basic(name)).json["repositories"] for name in ("app", "team", "reader")
    }
    assert {"app": ["shared", "team/app"], "team": ["team", "team/app"]} == {
        name: found[name] for name in ("app", "team")
    }
    assert {"shared", "team", "team/app", "teamx/app"} <= set(found["reader"])


def test_manifest_in_memory_is_guarded(guarded: SluiceServer) -> None:
    """That one user's pull is answered from memory opens nothing to anybody else."""
    path = "teamx/app/manifests/v1"
    assert [200] * 3 == [ask(guarded, "GET", path, basic("root")).status for _ in range(3)]
    assert outcome(ask(guarded, "GET", path)) == UNKNOWN_CALLER
    assert outcome(ask(guarded, "GET", path, basic("root", "wrong"))) == UNKNOWN_CALLER
    assert outcome(ask(guarded, "GET", path, basic("team"))) == DENIED


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "shared/manifests/v1", "repository:shared:pull"),
        ("POST", "shared/blobs/uploads/", "repository:shared:pull,push"),
        ("DELETE", "shared/manifests/v1", "repository:shared:delete"),
        ("GET", "_catalog", "registry:catalog:*"),
    ],
)
def test_challenge_leads_to_a_token_that_fits(guarded: SluiceServer, method: str, path: str, scope: str) -> None:
    """The challenge names endpoint, service and scope; the token got with them is good for that request."""
    asked = challenge(ask(guarded, method, path))
    assert {"realm": f"{guarded.url}/token", "service": "sluice", "scope": scope} == asked
    answer = ask(guarded, method, path.replace("v1", "absent"), token(guarded, "root", scope))
    assert answer.status in {200, 202, 404}


def test_token_is_good_for_its_scope_only(guarded: SluiceServer) -> None:
    """A token for pulling from one repository neither pushes there nor pulls elsewhere, whoever it is from."""
    held = token(guarded, "root", "repository:shared:pull")
    found = [ask(guarded, "GET", "shared/manifests/v1", held).status, ask(guarded, "GET", "", held).status]
    assert [200, 200] == found
    for method, path in (("POST", "shared/blobs/uploads/"), ("GET", "team/manifests/v1"), ("GET", "_catalog")):
        assert challenge(ask(guarded, method, path, held))["error"] == "insufficient_scope"


def test_scopes_are_cut_to_what_the_user_may(guarded: SluiceServer) -> None:
    """A token is issued for the part of the scopes that the user has, and the rest is denied with it."""
    held = token(guarded, "app", "repository:shared:pull,push", "repository:team:pull")
    assert ask(guarded, "GET", "shared/manifests/v1", held).status == 200
    assert outcome(ask(guarded, "POST", "shared/blobs/uploads/", held)) == DENIED
    assert outcome(ask(guarded, "GET", "team/manifests/v1", held)) == DENIED


def test_token_by_form(guarded: SluiceServer) -> None:
    """POST with grant_type=password gives a token like GET; another grant or a wrong password does not."""
    form = {"grant_type": "password", "username": "reader", "password": "secret", "scope": "repository:shared:pull"}
    client = RegistryClient(guarded)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}

    def post(**changes: str) -> Answer:
        return client.request("POST", "/token", urlencode({**form, "service": "sluice", **changes}).encode(), kind)

    held = post().json["access_token"]
    assert ask(guarded, "GET", "shared/manifests/v1", f"Bearer {held}").status == 200
    assert [401, 400, 400] == [
        post(password="wrong").status,
        post(grant_type="refresh_token").status,
        post(service="another").status,
    ]
    client.close()


def test_token_needs_a_login(guarded: SluiceServer) -> None:
    """Without anonymous pull, nobody gets a token without a name and password; the challenge is then Basic."""
    for authorization in (None, basic("reader", "wrong"), "Bearer x.y.z", "Basic !"):
        client = RegistryClient(guarded, authorization)
        answer = client.request("GET", "/token?service=sluice&scope=repository:shared:pull")
        assert outcome(answer) == UNKNOWN_CALLER
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        client.close()


@pytest.mark.parametrize("part", [0, 1, 2])
def test_forged_token(guarded: SluiceServer, part: int) -> None:
    """A token with any part changed proves nothing."""
    held = token(guarded, "root", "repository:shared:pull").removeprefix("Bearer ")
    parts = held.split(".")
    middle = len(parts[part]) // 2
    parts[part] = parts[part][:middle] + ("A" if parts[part][middle] != "A" else "B") + parts[part][middle + 1 :]
    assert (
        challenge(ask(guarded, "GET", "shared/manifests/v1", f"Bearer {'.'.join(parts)}"))["error"] == "invalid_token"
    )


def test_mount_needs_the_right_to_read_the_source(guarded: SluiceServer) -> None:
    """A blob is not mounted from where the caller may not pull; the answer is an upload, as if it were not there."""
    query = f"team/app/blobs/uploads/?mount={digest_of(BLOB)}&from="
    assert [202, 201] == [ask(guarded, "POST", query + source, basic("team")).status for source in ("shared", "team")]
    held = token(guarded, "root", "repository:team/app:pull,push")
    assert ask(guarded, "POST", f"{query}shared", held).status == 202


def test_basic_challenge(tmp_path: Path) -> None:
    """With access.challenge=basic clients are asked for name and password on each request."""
    data = with_users(tmp_path / "data", USERS[:1])
    with SluiceServer(data, "--access-challenge", "basic") as server:
        answer = ask(server, "GET", "")
        assert outcome(answer) == UNKNOWN_CALLER
        assert answer.headers["www-authenticate"] == 'Basic realm="sluice",charset="UTF-8"'
        assert ask(server, "GET", "", basic("reader")).status == 200


def test_anonymous_pull(tmp_path: Path) -> None:
    """With access.anonymous_pull everybody pulls, with a token or without; pushing and the catalog stay guarded."""
    data = with_users(tmp_path / "data", USERS)
    with SluiceServer(data, "--access-anonymous-pull") as server:
        client = RegistryClient(server, basic("root"))
        client.push_image("shared", "v1", [BLOB])
        client.close()
        for authorization in (None, basic("", ""), token(server, None, "repository:shared:pull,push")):
            found = [
                ask(server, "GET", path, authorization).status for path in ("shared/manifests/v1", "shared/tags/list")
            ]
            assert [200, 200] == found
            for method, path in (
                ("POST", "shared/blobs/uploads/"),
                ("DELETE", "shared/manifests/v1"),
                ("GET", "_catalog"),
            ):
                assert ask(server, method, path, authorization).status == 401
        assert ask(server, "GET", "shared/manifests/v1", basic("reader", "wrong")).status == 401


@pytest.mark.parametrize("change", ["removed", "new password", "lesser role"])
def test_change_of_a_user_counts_at_once(tmp_path: Path, change: str) -> None:
    """Tokens and passwords that were good a moment ago, and remembered, are not after the user has changed."""
    data = with_users(tmp_path / "data", [("ann", Role.WRITE, ()), ("root", Role.ADMIN, ())])
    changed = {"name": "ann", "password": "other" if change == "new password" else "secret", "role": "read"}
    with SluiceServer(data) as server:
        held = token(server, "ann", "repository:app:pull,push")
        for authorization in (basic("ann"), held):
            client = RegistryClient(server, authorization)
            client.push_image("app", "v1")
            assert [200] * 2 == [client.request("GET", "/v2/app/manifests/v1").status for _ in range(2)]
            client.close()
        command = "user remove" if change == "removed" else "user add"
        call(data / SOCKET_NAME, command, {"name": "ann"} if change == "removed" else changed)
        assert challenge(ask(server, "GET", "app/manifests/v1", held))["error"] == "invalid_token"
        pulled, pushed = (
            ask(server, "GET", "app/manifests/v1", basic("ann")),
            ask(server, "POST", "app/blobs/uploads/", basic("ann")),
        )
        assert ([200, 403] if change == "lesser role" else [401, 401]) == [pulled.status, pushed.status]
        assert ask(server, "GET", "app/manifests/v1", basic("root")).status == 200


def test_first_user_closes_an_open_registry(tmp_path: Path) -> None:
    """On loopback without users anybody may do anything, and the log says so; with the first user nobody else may."""
    with SluiceServer(tmp_path / "data") as server:
        client = RegistryClient(server)
        client.push_image("app", "v1")
        assert [200, 200] == [client.request("GET", f"/v2/{path}").status for path in ("app/manifests/v1", "_catalog")]
        assert "anybody on this machine may pull and push" in server.log.read_text()
        call(
            server.data / SOCKET_NAME, "user add", {"name": "ann", "password": "secret", "role": "read", "prefixes": []}
        )
        assert [401, 401] == [client.request("GET", f"/v2/{path}").status for path in ("app/manifests/v1", "_catalog")]
        client.close()
        assert ask(server, "GET", "app/manifests/v1", basic("ann")).status == 200


def listening_everywhere(data: Path, *flags: str, tls: bool = True) -> SluiceServer:
    """A server that other machines could reach."""
    server = SluiceServer(data, *flags, tls=tls)
    server.flags = [*flags, "--listen", f"0.0.0.0:{server.port}"]
    return server


def test_registry_for_other_machines_is_closed_without_users(tmp_path: Path) -> None:
    """Beyond loopback no users means that nobody may do anything, and the log says so."""
    with listening_everywhere(tmp_path / "data") as server:
        for method, path, _ in REQUESTS.values():
            assert challenge(ask(server, method, path))["service"] == "sluice"
        assert "nobody may pull or push" in server.log.read_text()


def test_plain_http_beyond_loopback_is_loud(tmp_path: Path) -> None:
    """Passwords in the clear on other addresses than loopback are served only on demand, with a warning."""
    with listening_everywhere(tmp_path / "data", tls=False) as server:
        assert "INSECURE" in server.log.read_text()
        assert outcome(ask(server, "GET", "")) == UNKNOWN_CALLER


def test_history_names_the_user(guarded: SluiceServer) -> None:
    """Who moved a tag is on record, by password and by token."""
    document = encoded(artifact_of(None, "application/vnd.example"))
    for authorization in (basic("writer"), token(guarded, "root", "repository:history:pull,push,delete")):
        client = RegistryClient(guarded, authorization)
        client.push_blob("history", EMPTY_CONFIG)
        client.push_manifest("history", "v1", document)
        assert client.request("DELETE", "/v2/history/manifests/v1").status in {202, 401}
        client.close()
    found = call(guarded.data / SOCKET_NAME, "history", {"repository": "history", "tag": "v1"})
    assert isinstance(found, dict)
    moves = [(move["actor"], move["digest"]) for move in found["moves"]]
    assert [("root", None), ("root", digest_of(document)), ("writer", None), ("writer", digest_of(document))] == moves

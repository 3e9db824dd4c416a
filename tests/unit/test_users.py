"""Users are kept whole on disk, checked when read, and seen by every process that serves them."""

from __future__ import annotations

import json
import logging
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ConfigInvalid
from sluice.server.users import (
    FILE_NAME,
    PASSWORD_BYTES_MAX,
    Role,
    Users,
    bcrypt_input,
    hash_password,
    password_matches,
)

COST = 4


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_users_survive_a_restart(tmp_path: Path) -> None:
    """What was added is there after reopening: names sorted, prefixes sorted and single, hashes bcrypt of the cost."""
    users = Users(tmp_path, cost=COST)
    written = [
        users.add("zoe", "secret", Role.ADMIN),
        users.add("alice@example.org", "pässword", Role.WRITE, ["team/app", "base", "base"]),
    ]

    found = Users(tmp_path).list()

    assert tuple(reversed(written)) == found
    assert found[0].prefixes == ("base", "team/app")
    assert found[0].password_hash.startswith("$2b$04$")


def test_file_is_for_the_owner_alone(tmp_path: Path) -> None:
    """users.json is 0600."""
    Users(tmp_path, cost=COST).add("alice", "secret", Role.READ)

    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_every_change_moves_the_revision(tmp_path: Path) -> None:
    """Adding, replacing and removing are each one revision, and take effect at once."""
    users = Users(tmp_path, cost=COST)
    seen = [users.revision]

    first = users.add("alice", "secret", Role.READ)
    seen.append(users.revision)
    second = users.replace("alice", "other", Role.WRITE, ["team"])
    seen.append(users.revision)
    assert users.get("alice") == second
    users.remove("alice")
    seen.append(users.revision)

    assert seen == sorted(set(seen))
    assert users.get("alice") is None
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(
    "changes", [{"password_hash": "$2b$04$" + "a" * 53}, {"role": Role.READ}, {"prefixes": ("team", "two")}]
)
def test_fingerprint_changes_with_the_record(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each part of the record that decides access is in the fingerprint by itself."""
    alice = Users(tmp_path, cost=COST).add("alice", "secret", Role.WRITE, ["team"])

    assert alice.fingerprint != replace(alice, **changes).fingerprint


def test_same_password_again_is_another_record(tmp_path: Path) -> None:
    """Replacing a user by the same values ends its tokens: that is how an operator logs somebody out."""
    users = Users(tmp_path, cost=COST)

    before = users.add("alice", "secret", Role.WRITE)

    assert before.fingerprint != users.replace("alice", "secret", Role.WRITE).fingerprint


def test_running_server_sees_another_process(tmp_path: Path) -> None:
    """A change made through another object on the same file is seen within a second, and not looked for before."""
    clock = Clock()
    running, offline = Users(tmp_path, cost=COST, clock=clock), Users(tmp_path, cost=COST)
    offline.add("alice", "secret", Role.READ)

    assert running.get("alice") is None
    clock.now += 1
    assert running.get("alice") == offline.get("alice")
    offline.remove("alice")
    clock.now += 1
    assert (running.get("alice"), running.revision) == (None, 2)


def test_change_starts_from_what_is_on_disk(tmp_path: Path) -> None:
    """Two writers that have not looked at each other's work lose nothing."""
    one, two = Users(tmp_path, cost=COST), Users(tmp_path, cost=COST)

    one.add("alice", "secret", Role.READ)
    two.add("bob", "secret", Role.READ)

    assert [user.name for user in Users(tmp_path).list()] == ["alice", "bob"]


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Eight threads with an object each add a user at once: all eight are there."""
    names = [f"user{number}" for number in range(8)]

    def add(name: str) -> None:
        Users(tmp_path, cost=COST).add(name, "secret", Role.READ)

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [user.name for user in Users(tmp_path).list()] == names


@pytest.mark.parametrize("damage", [None, b"", b"{", b'{"version": 1, "users": [{}]}'])
def test_damage_under_a_running_server_keeps_its_users(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanishes or breaks must not open the registry: the users stay as they were, and the log says so."""
    clock = Clock()
    users = Users(tmp_path, cost=COST, clock=clock)
    alice = users.add("alice", "secret", Role.READ)
    if damage is None:
        (tmp_path / FILE_NAME).unlink()
    else:
        (tmp_path / FILE_NAME).write_bytes(damage)

    clock.now += 1
    with caplog.at_level(logging.ERROR):
        assert users.get("alice") == alice
        clock.now += 1
        assert users.list() == (alice,)

    assert [record.message.split(":")[0] for record in caplog.records] == ["users are kept as they were"]
    with pytest.raises(ConfigInvalid, match=r"users\.json"):
        users.add("bob", "secret", Role.READ)


def _record(**changes: object) -> dict[str, object]:
    good = {
        "name": "alice",
        "password_hash": bcrypt.hashpw(b"secret", bcrypt.gensalt(COST)).decode(),
        "role": "write",
        "prefixes": ["team"],
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    return good | changes


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "not a JSON object"),
        ({"version": 2, "users": []}, "version is 2"),
        ({"version": 1}, "users is not a list"),
        ({"version": 1, "users": [1]}, r"users\[0\]: it is not an object"),
        ({"version": 1, "users": [_record(), _record()]}, r"users\[1\]\.name repeats 'alice'"),
        ({"version": 1, "users": [_record(name="a:b")]}, "user name 'a:b'"),
        ({"version": 1, "users": [_record(name=None)]}, "name is not a string"),
        ({"version": 1, "users": [_record(password_hash="secret")]}, "password_hash is not bcrypt"),
        ({"version": 1, "users": [_record(password_hash="$2b$31$" + "a" * 53)]}, "cost of 4 to 16"),
        ({"version": 1, "users": [_record(role="root")]}, "root"),
        ({"version": 1, "users": [_record(role="admin")]}, "prefixes cannot limit the role admin"),
        ({"version": 1, "users": [_record(prefixes="team")]}, "prefixes is not a list of strings"),
        ({"version": 1, "users": [_record(prefixes=["Team"])]}, "prefixes: repository name 'Team'"),
        ({"version": 1, "users": [_record(prefixes=["x"] * 101)]}, "prefixes has 101 entries"),
        ({"version": 1, "users": [_record(created_at="yesterday")]}, "yesterday"),
        ({"version": 1, "users": [_record(created_at="2026-01-02T03:04:05")]}, "time zone"),
    ],
)
def test_damaged_file_stops_the_start(tmp_path: Path, document: Any, says: str) -> None:
    """What was not written by us is refused with the file, the place in it and what is wrong."""
    (tmp_path / FILE_NAME).write_text(json.dumps(document))

    with pytest.raises(ConfigInvalid, match=says) as caught:
        Users(tmp_path)
    assert str(tmp_path / FILE_NAME) in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"version": 1e999'])
def test_hostile_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no JSON, or nested without end, are the same one error."""
    (tmp_path / FILE_NAME).write_bytes(content)

    with pytest.raises(ConfigInvalid, match="is damaged"):
        Users(tmp_path)


def test_apache_style_hash_is_accepted(tmp_path: Path) -> None:
    """A hash in the ``$2y$`` form of htpasswd, put into the file by hand, works."""
    made = _record()
    text = str(made["password_hash"]).replace("$2b$", "$2y$")
    (tmp_path / FILE_NAME).write_text(json.dumps({"version": 1, "users": [made | {"password_hash": text}]}))

    user = Users(tmp_path).get("alice")

    assert user is not None
    assert password_matches(b"secret", user.password_hash.encode())


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", " a", "a ", "x" * 129, "a\x00", "a\u202eb"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    """Names that Basic credentials cannot carry, or that mislead where they are shown, are refused."""
    users = Users(tmp_path, cost=COST)

    with pytest.raises(ConfigInvalid, match="user name"):
        users.add(name, "secret", Role.READ)
    assert len(users) == 0


@pytest.mark.parametrize("password", ["", "x" * (PASSWORD_BYTES_MAX + 1), "line\n", "nul\x00"])
def test_bad_passwords_are_refused_without_being_shown(tmp_path: Path, password: str) -> None:
    """An empty or too long password and control characters are refused; the message does not repeat it."""
    with pytest.raises(ConfigInvalid, match="password") as caught:
        Users(tmp_path, cost=COST).add("alice", password, Role.READ)
    assert not password or password not in caught.value.message


def test_user_that_exists_or_not_is_told_apart(tmp_path: Path) -> None:
    """Adding twice, and replacing or removing nobody, are errors that change nothing."""
    users = Users(tmp_path, cost=COST)
    alice = users.add("alice", "secret", Role.READ)

    with pytest.raises(ConfigInvalid, match="'alice' exists already"):
        users.add("alice", "other", Role.ADMIN)
    with pytest.raises(ConfigInvalid, match="no user 'bob'"):
        users.replace("bob", "other", Role.ADMIN)
    with pytest.raises(ConfigInvalid, match="no user 'bob'"):
        users.remove("bob")
    assert (users.list(), users.revision) == ((alice,), 1)


@pytest.mark.parametrize("length", [1, 71, 72, 73, 74, PASSWORD_BYTES_MAX])
def test_long_passwords_count_to_their_last_byte(length: int) -> None:
    """Beyond the 72 bytes that bcrypt looks at, every byte still matters."""
    password = "p" * length
    made = hash_password(password, COST).encode()

    def matches(text: str) -> bool:
        material = bcrypt_input(text)
        return material is not None and password_matches(material, made)

    assert matches(password)
    assert not matches(password[:-1] + "q")
    assert not matches(password + "p")


@given(st.text(max_size=2000))
def test_any_password_fits_bcrypt(password: str) -> None:
    """Whatever text comes, bcrypt gets at most 72 bytes, or nothing when the text is beyond the limit."""
    material = bcrypt_input(password)

    too_long = len(password.encode("utf-8", "surrogatepass")) > PASSWORD_BYTES_MAX
    assert too_long == (material is None)
    assert len(material or b"") <= 72

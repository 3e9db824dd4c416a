"""The keys of tokens: a new one takes over in time, and no token ends before its own end for it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sluice.pki.signing import FORMER_MAX, KEY_LIFE_S, SigningKeys, identifier, load_keys, parse, rotate_keys
from sluice.server.tokens import KEY_FILE_NAME, Tokens
from sluice.server.users import Role, Users
from sluice.wire.challenge import Scope

KEYS = st.binary(min_size=32, max_size=32)
TIMES = st.integers(0, 10**11).map(float)
TTL_S = 300
SCOPES = [Scope("repository", "app", frozenset({"pull"}))]


@given(KEYS, TIMES, st.lists(st.tuples(KEYS, TIMES), max_size=FORMER_MAX).map(tuple))
def test_what_is_written_is_read(current: bytes, made_at: float, former: tuple[tuple[bytes, float], ...]) -> None:
    """A file says exactly what it was made from."""
    keys = SigningKeys(current, made_at, former)
    assert keys == parse(keys.render())


@given(st.binary(max_size=200))
def test_anything_else_is_keys_or_damage(content: bytes) -> None:
    """No content raises; what is read as keys has a whole one first."""
    found = parse(content)
    assert found is None or len(found.current) == 32


@given(st.lists(st.tuples(KEYS, st.integers(0, 2 * TTL_S)), max_size=FORMER_MAX))
def test_no_token_ends_before_its_time(rotations: list[tuple[bytes, int]]) -> None:
    """However often the key changes, each key is accepted for a whole token's life after it signed last."""
    keys, now = SigningKeys(b"0" * 32, 0.0), 0.0
    signed_until = {identifier(keys.current): 0.0}
    for key, after_s in rotations:
        now += after_s
        signed_until[identifier(keys.current)] = now
        keys = keys.rotated(key, now, TTL_S)
        signed_until[identifier(key)] = now
        alive = {name for name, last in signed_until.items() if now < last + TTL_S}
        assert alive <= keys.accepted(now).keys()
    late = now + TTL_S
    assert {identifier(keys.current)} == keys.accepted(late).keys()


def test_a_key_that_is_old_is_replaced_and_its_tokens_live_on(tmp_path: Path) -> None:
    """After its life another key signs; a token of the one before is good to its end, also over a restart."""
    clock = [1_800_000_000.0]
    users = Users(tmp_path, cost=4)
    alice = users.add("alice", "secret", Role.READ, ())

    def tokens() -> Tokens:
        return Tokens(tmp_path, users, "sluice", clock=lambda: clock[0])

    first = tokens()
    assert not first.renew(TTL_S)
    clock[0] += KEY_LIFE_S - 1
    assert not first.renew(TTL_S)
    old = first.issue(alice, SCOPES, TTL_S).token
    clock[0] += 1
    assert first.renew(TTL_S)
    new = first.issue(alice, SCOPES, TTL_S).token
    again = tokens()
    assert [True] * 4 == [one.verify(token) is not None for one in (first, again) for token in (old, new)]
    clock[0] += TTL_S - 1
    assert [None, True] == [one and True for one in map(tokens().verify, (old, new))]
    assert 2 == len((tmp_path / KEY_FILE_NAME).read_text().splitlines())
    clock[0] += KEY_LIFE_S
    assert again.renew(TTL_S)
    assert 2 == len((tmp_path / KEY_FILE_NAME).read_text().splitlines())  # the first one has left


def test_a_key_is_on_disk_before_it_signs(tmp_path: Path) -> None:
    """What ``rotate_keys`` returns is what the file has."""
    keys = load_keys(tmp_path / "token.key", 1.0)
    assert rotate_keys(tmp_path / "token.key", keys, 2.0, TTL_S) == load_keys(tmp_path / "token.key", 3.0)

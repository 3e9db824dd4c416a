"""Password checks cost bounded CPU, never hold up other users, and never outlive the password."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sluice.errors import SluiceError, TooManyRequests, Unavailable
from sluice.server.passwords import MATCH_LIFE_S, MISMATCH_LIFE_S, PasswordCheck, Remembered
from sluice.server.users import Role, User, Users

COST = 4
SLOW_COST = 10  # about 50 ms a check: long enough to be told from a remembered one


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def users(tmp_path: Path) -> Users:
    users = Users(tmp_path, cost=COST)
    users.add("alice", "secret", Role.READ)
    return users


def _cpu_s(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds of CPU of the whole process while ``work`` runs."""
    began = time.process_time()
    asyncio.run(_awaited(work()))
    return time.process_time() - began


async def _awaited(work: Awaitable[object]) -> None:
    await work


async def _outcomes(asked: list[Awaitable[User | None]]) -> list[str]:
    """One word for each check, all asked at once: its user's name, 'no', or the error's class."""

    async def word(check: Awaitable[User | None]) -> str:
        try:
            user = await check
        except SluiceError as error:
            return type(error).__name__
        return "no" if user is None else user.name

    return list(await asyncio.gather(*(word(check) for check in asked)))


@pytest.mark.parametrize(
    ("name", "password", "found"),
    [
        ("alice", "secret", True),
        ("alice", "Secret", False),
        ("alice", "", False),
        ("alice", "secret\x00", False),
        ("alice", "\udcff", False),
        ("alice", "x" * 100_000, False),
        ("nobody", "secret", False),
        ("", "", False),
        ("\udcff", "secret", False),
    ],
)
def test_only_the_right_pair_is_accepted(users: Users, name: str, password: str, found: bool) -> None:
    """The user comes back for the right name and password, None for anything else, never an error."""
    checks = PasswordCheck(users)

    user = asyncio.run(checks.check(name, password))

    checks.close()
    assert user == (users.get("alice") if found else None)


def test_checked_password_is_not_paid_again(tmp_path: Path) -> None:
    """A hundred repeats of a right and of a wrong password cost less CPU than one check."""
    users = Users(tmp_path, cost=SLOW_COST)
    users.add("alice", "secret", Role.READ)
    checks = PasswordCheck(users)

    async def first() -> None:
        await checks.check("alice", "secret")
        await checks.check("alice", "wrong")

    async def again() -> None:
        for _ in range(100):
            assert await checks.check("alice", "secret") == users.get("alice")
            assert await checks.check("alice", "wrong") is None

    once_s, again_s = _cpu_s(first), _cpu_s(again)
    checks.close()

    assert again_s < once_s / 2


@pytest.mark.parametrize(("password", "life_s"), [("secret", MATCH_LIFE_S), ("wrong", MISMATCH_LIFE_S)])
def test_results_are_forgotten_in_time(tmp_path: Path, password: str, life_s: float) -> None:
    """Just before its time a result is remembered, at its time it is found out anew (seen by the CPU it costs)."""
    users, clock = Users(tmp_path, cost=SLOW_COST), Clock()
    users.add("alice", "secret", Role.READ)
    checks = PasswordCheck(users, clock=clock)

    def ask() -> float:
        return _cpu_s(lambda: checks.check("alice", password))

    fresh_s = ask()
    clock.now += life_s - 1
    remembered_s = ask()
    clock.now += 1
    over_s = ask()
    checks.close()

    assert remembered_s < fresh_s / 2
    assert over_s > fresh_s / 2


def test_changed_password_ends_the_old_one_at_once(users: Users) -> None:
    """After a change the remembered old password is worthless and the new one works."""

    async def story() -> list[str]:
        checks = PasswordCheck(users)
        words = await _outcomes([checks.check("alice", "secret")])
        users.replace("alice", "new", Role.READ)
        words += await _outcomes([checks.check("alice", "secret"), checks.check("alice", "new")])
        checks.close()
        return words

    assert asyncio.run(story()) == ["alice", "no", "alice"]


def test_removed_user_ends_at_once_and_may_come_back(users: Users) -> None:
    """A removed user's remembered password is worthless; a wrong guess from before does not bar a new user."""

    async def story() -> list[str]:
        checks = PasswordCheck(users)
        words = await _outcomes([checks.check("alice", "secret"), checks.check("bob", "hunter2")])
        users.remove("alice")
        users.add("bob", "hunter2", Role.READ)
        words += await _outcomes([checks.check("alice", "secret"), checks.check("bob", "hunter2")])
        checks.close()
        return words

    assert asyncio.run(story()) == ["alice", "no", "no", "bob"]


def test_password_changed_while_it_is_checked_is_refused(tmp_path: Path) -> None:
    """A check that began before the change does not let the old password in after it."""
    users = Users(tmp_path, cost=SLOW_COST)
    users.add("alice", "secret", Role.READ)
    users.cost = COST

    async def story() -> User | None:
        checks = PasswordCheck(users)
        asked = asyncio.create_task(checks.check("alice", "secret"))
        await asyncio.sleep(0)
        users.replace("alice", "new", Role.READ)
        user = await asked
        checks.close()
        return user

    assert asyncio.run(story()) is None


def test_role_changed_while_it_is_checked_is_the_new_one(users: Users) -> None:
    """The record that comes back is the current one, not the one that the check began with."""

    async def story() -> User | None:
        checks = PasswordCheck(users)
        await checks.check("alice", "secret")
        again = users.replace("alice", "secret", Role.ADMIN)
        user = await checks.check("alice", "secret")
        checks.close()
        assert user == again
        return user

    user = asyncio.run(story())
    assert user is not None
    assert user.role is Role.ADMIN


def test_queue_is_bounded(tmp_path: Path) -> None:
    """With 16 waiting places, of 100 guesses at 50 names 1 runs, 16 wait and the rest are refused at once."""
    users = Users(tmp_path, cost=SLOW_COST)

    async def story() -> list[str]:
        checks = PasswordCheck(users, 16)
        words = await _outcomes([checks.check(f"user{number % 50}", f"guess{number}") for number in range(100)])
        checks.close()
        return words

    words = asyncio.run(story())
    assert (words.count("no"), words.count("TooManyRequests")) == (17, 83)


@pytest.mark.parametrize("bob_is_first", [False, True])
def test_guessing_at_one_name_leaves_room_for_others(tmp_path: Path, bob_is_first: bool) -> None:
    """While one name's places are all taken by guesses, another user's first login is checked next in turn."""
    users = Users(tmp_path, cost=SLOW_COST)
    users.add("bob", "hunter2", Role.READ)
    finished: list[str] = []

    async def ask(checks: PasswordCheck, name: str, password: str) -> None:
        try:
            await checks.check(name, password)
        except TooManyRequests:
            return
        finished.append(name)

    async def story() -> None:
        checks = PasswordCheck(users, 64)
        guesses = [ask(checks, "alice", f"guess{number}") for number in range(1000)]
        bob = ask(checks, "bob", "hunter2")
        others = [bob, *guesses] if bob_is_first else [*guesses, bob]
        await asyncio.gather(ask(checks, "carol", "running already"), *others)
        checks.close()

    asyncio.run(story())
    assert finished.count("alice") == 8
    assert finished.index("bob") <= 2


def test_identical_questions_are_asked_once(users: Users) -> None:
    """A thousand clients with the same password at once are one check, and all get its answer."""

    async def story() -> list[str]:
        checks = PasswordCheck(users, 1)
        words = await _outcomes([checks.check("alice", "secret") for _ in range(1000)])
        checks.close()
        return words

    assert asyncio.run(story()) == ["alice"] * 1000


def test_client_that_leaves_does_not_cancel_for_others(tmp_path: Path) -> None:
    """When the first of two that wait for the same check is cancelled, the second still gets the answer."""
    users = Users(tmp_path, cost=SLOW_COST)
    users.add("alice", "secret", Role.READ)

    async def story() -> User | None:
        checks = PasswordCheck(users)
        first = asyncio.create_task(checks.check("alice", "secret"))
        second = asyncio.create_task(checks.check("alice", "secret"))
        await asyncio.sleep(0.005)
        first.cancel()
        user = await second
        assert first.cancelled()
        checks.close()
        return user

    assert asyncio.run(story()) == users.get("alice")


def test_event_loop_runs_while_passwords_are_checked(tmp_path: Path) -> None:
    """Eight checks of about 50 ms each leave the event loop answering all the while."""
    users = Users(tmp_path, cost=SLOW_COST)

    async def story() -> int:
        checks = PasswordCheck(users)
        asked = [asyncio.create_task(checks.check(f"user{number}", "guess")) for number in range(8)]
        turns = 0
        while not all(task.done() for task in asked):
            await asyncio.sleep(0.001)
            turns += 1
        checks.close()
        return turns

    assert asyncio.run(story()) > 16


def test_unknown_name_costs_what_a_known_one_costs(tmp_path: Path) -> None:
    """The CPU for a wrong password does not tell whether the name exists."""
    users = Users(tmp_path, cost=SLOW_COST)
    users.add("alice", "secret", Role.READ)
    checks = PasswordCheck(users)

    known = min(_cpu_s(lambda n=n: checks.check("alice", f"guess{n}")) for n in range(5))  # type: ignore[misc]
    unknown = min(_cpu_s(lambda n=n: checks.check("nobody", f"guess{n}")) for n in range(5))  # type: ignore[misc]
    checks.close()

    assert 0.5 < unknown / known < 2


def test_stopping_ends_the_wait(tmp_path: Path) -> None:
    """Checks that wait when the server stops end with Unavailable, and later ones are refused."""
    users = Users(tmp_path, cost=SLOW_COST)

    async def story() -> list[str]:
        checks = PasswordCheck(users)
        asked = [asyncio.create_task(checks.check(f"user{number}", "guess")) for number in range(3)]
        await asyncio.sleep(0)
        checks.close()
        words = await _outcomes([*asked])
        with pytest.raises(Unavailable):
            await checks.check("later", "guess")
        return words

    assert asyncio.run(story()) == ["Unavailable"] * 3


def test_memory_is_bounded_and_keeps_what_is_used() -> None:
    """Of three entries where two fit, the one unused for longest goes; an entry is gone at its time."""
    memory: Remembered[int] = Remembered(2)
    memory.put(b"a", 1, 10)
    memory.put(b"b", 2, 10)
    assert memory.get(b"a", 0) == 1
    memory.put(b"c", 3, 5)

    assert [memory.get(key, 0) for key in (b"a", b"b", b"c")] == [1, None, 3]
    assert [memory.get(key, 5) for key in (b"a", b"b", b"c")] == [1, None, None]
    assert len(memory) == 1

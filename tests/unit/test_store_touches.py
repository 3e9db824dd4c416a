"""Touches never get lost between a writer's HEAD and garbage collection, and listeners hear in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.oci.reference import Repository
from sluice.store import touches as module
from sluice.store.events import Changes
from sluice.store.index import Change, Index
from sluice.store.touches import Key, Touches, flush


def run(statement: str) -> Change[object]:
    return lambda connection: connection.execute(statement)


A, B, C = ("a", "sha256:1"), ("a", "sha256:2"), ("b", "sha256:1")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(tmp_path / "index.sqlite")
    yield opened
    opened.close()


def test_blocking_spares_what_was_touched() -> None:
    """Of the victims, one touched since ``take`` comes back; the others refuse touches until unblocked."""
    touches = Touches()
    assert touches.touch(*C, 1.0)
    assert touches.take() == {C: 1.0}
    assert touches.touch(*A, 2.0)
    assert touches.block([A, B, C]) == {A}
    assert [touches.touch(*key, 3.0) for key in (A, B, C, ("b", "sha256:2"))] == [True, False, False, True]
    touches.unblock([A, B, C])
    assert [touches.touch(*key, 4.0) for key in (B, C)] == [True, True]


def test_a_restored_touch_is_not_older_than_a_new_one() -> None:
    """What a failed commit gives back is kept, and does not overwrite a touch that came meanwhile."""
    touches = Touches()
    touches.touch(*A, 1.0)
    touches.touch(*B, 1.0)
    taken = touches.take()
    touches.touch(*A, 2.0)
    touches.restore(taken)
    assert touches.take() == {A: 2.0, B: 1.0}


def test_waiting_touches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond ``TOUCHES_MAX`` keys a new one is answered False, which is safe; known ones still count."""
    monkeypatch.setattr(module, "TOUCHES_MAX", 2)
    touches = Touches()
    assert [touches.touch(*key, 1.0) for key in (A, B, C, A)] == [True, True, False, True]
    assert len(touches) == 2


@given(st.lists(st.tuples(st.sampled_from("tkbu"), st.sampled_from([A, B, C]))))
def test_a_true_answer_protects(steps: list[tuple[str, Key]]) -> None:
    """In any order of touches, takes, blocks and unblocks: a key that was told True since the last take is never among
    the condemned, and one that is blocked is never told True."""
    touches = Touches()
    promised: set[Key] = set()
    blocked: set[Key] = set()
    for step, key in steps:
        if step == "t":
            told = touches.touch(*key, 1.0)
            assert told is (key not in blocked)
            promised |= {key} if told else set()
        elif step == "k":
            assert set(touches.take()) == promised
            promised = set()
        elif step == "b":
            spared = touches.block([key])
            assert spared == {key} & promised
            blocked |= {key} - spared
        else:
            touches.unblock([key])
            blocked -= {key}


def test_flush_writes_both_tables_and_never_turns_back(index: Index) -> None:
    """A flush raises ``touched_at`` of links and manifests of that repository alone, and never lowers it."""
    for statement in (
        "INSERT INTO repositories VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO contents VALUES ('sha256:1', 1, 0), ('sha256:2', 1, 0)",
        "INSERT INTO links VALUES (1, 'sha256:1', 5, NULL), (2, 'sha256:1', 5, NULL)",
        "INSERT INTO manifests VALUES (1, 'sha256:2', 'm', 1, NULL, NULL, '{}', 50, 0, NULL)",
    ):
        index.write_blocking(run(statement))
    touches = Touches()
    for key in (A, B, ("nowhere", "sha256:1")):
        touches.touch(*key, 10.0)
    assert len(index.write_blocking(lambda connection: flush(connection, touches))) == 3
    links = index.read(lambda c: c.execute("SELECT repository, touched_at FROM links ORDER BY 1").fetchall())
    manifests = index.read(lambda c: c.execute("SELECT touched_at FROM manifests").fetchall())
    assert (links, manifests) == ([(1, 10.0), (2, 5.0)], [(50.0,)])
    assert len(touches) == 0


def test_listeners_hear_before_the_waiting_coroutine_goes_on() -> None:
    """A thread that notifies and returns is heard, in the loop's thread, before whoever awaits it continues."""
    heard: list[tuple[Repository, int]] = []

    async def run() -> tuple[int, int]:
        changes = Changes()
        changes.attach()
        changes.on_change(lambda repository: heard.append((repository, threading.get_ident())))
        before = changes.revision
        for number in range(50):
            await asyncio.to_thread(changes.notify, Repository(f"r{number}"))
            assert len(heard) == number + 1
        changes.notify(Repository("direct"))
        assert heard[-1][0] == "direct"
        return before, changes.revision

    before, after = asyncio.run(run())
    assert after - before == 51
    assert {thread for _, thread in heard} == {threading.get_ident()}


def test_without_a_loop_listeners_run_at_once() -> None:
    """Before ``attach`` and after ``detach`` a notification is heard in the same thread."""
    changes = Changes()
    heard: list[Repository] = []
    changes.on_change(heard.append)
    changes.notify(Repository("a"))
    changes.detach()
    changes.notify(Repository("b"))
    assert heard == ["a", "b"]

"""Garbage collection beside writers: files, touches, changes that come in between, and the schedule."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sluice.errors import GcRunning, ManifestBlobUnknown
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.changes import hold_content
from sluice.store.gc import GcReport, GcSchedule, collect, plan, unlink_condemned
from sluice.store.local import LocalStore
from sluice.store.reach import BATCH_ROWS
from sluice.store.settings import StoreSettings
from sluice.store.touches import Key, Touches
from sluice.testing.content import image, push_blob
from sluice.testing.graph import (
    GRACE_S,
    START,
    Clock,
    Contained,
    Node,
    digest,
    files,
    fill,
    held,
    put_files,
)

DELAY_S = 60.0
SETTINGS = StoreSettings(reserve_bytes=0, grace_s=GRACE_S, unlink_delay_s=DELAY_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LocalStore]:
    opened = LocalStore.open(tmp_path / "data", SETTINGS, clock)
    yield opened
    asyncio.run(opened.close())


def test_files_outlive_their_rows(store: LocalStore, clock: Clock) -> None:
    """A file goes ``unlink_delay_s`` after its row, not before; a kept one never."""
    fill(store, {"r": Contained({}, {"old": False, "new": True})})
    put_files(store, "old", "new")
    assert 0 == collect(store).unlinked
    clock.now += DELAY_S - 1
    assert (0, 0) == unlink_condemned(store)
    clock.now += 1
    assert ({digest("old"), digest("new")}, 1) == (files(store), plan(store).unlinked)
    assert (1, len("old")) == unlink_condemned(store)
    assert {digest("new")} == files(store)
    assert [] == store.index.read(lambda c: c.execute("SELECT * FROM condemned").fetchall())


def test_offline_files_go_at_once(store: LocalStore) -> None:
    """Where nobody reads, one run frees the space."""
    fill(store, {"r": Contained({}, {"old": False})})
    put_files(store, "old")
    report = collect(store, offline=True)
    assert (1, len("old"), set()) == (report.unlinked, report.unlinked_bytes, files(store))


def test_a_push_lifts_the_condemnation(tmp_path: Path, clock: Clock) -> None:
    """Content that is pushed again after its row went is held, and its file survives the unlinking."""

    async def scenario() -> bytes:
        store = LocalStore.open(tmp_path / "data", SETTINGS, clock)
        repository, data = Repository("r"), b"again"
        found = (await push_blob(store, repository, data)).digest
        clock.now += GRACE_S + 1
        assert 1 == (await asyncio.to_thread(collect, store)).blobs
        await push_blob(store, repository, data)
        clock.now += DELAY_S + 1
        assert (0, 0) == await asyncio.to_thread(unlink_condemned, store)
        reader = await store.open_blob(repository, found)
        read = await reader.read(0, reader.size or 0)
        reader.close()
        await store.close()
        return read

    assert b"again" == asyncio.run(scenario())


def test_a_push_that_overtakes_the_unlinking(store: LocalStore, clock: Clock) -> None:
    """Content that a push enters while the unlinking waits for its lock keeps its file."""
    fill(store, {"r": Contained({}, {"old": False})})
    put_files(store, "old")
    collect(store)
    clock.now += DELAY_S
    content = Digest.parse(digest("old"))
    with ThreadPoolExecutor(1) as threads:
        with store.content_lock(content):
            unlinking = threads.submit(unlink_condemned, store)
            time.sleep(0.1)  # for the unlinking to have read its list; too short a time would let a defect pass
            store.index.write_blocking(lambda c: hold_content(c, content, len("old"), clock.now))
        assert (0, 0) == unlinking.result()
    assert {str(content)} == files(store)


def test_a_condemned_row_without_file_goes(store: LocalStore, clock: Clock) -> None:
    """A crash between unlinking and forgetting leaves nothing that stays."""
    fill(store, {"r": Contained({}, {"old": False})})
    collect(store)
    clock.now += DELAY_S
    assert (0, 0) == unlink_condemned(store)
    assert [] == store.index.read(lambda c: c.execute("SELECT * FROM condemned").fetchall())


def test_a_touch_that_waits_in_memory_counts(store: LocalStore) -> None:
    """What a writer asked about is spared though the index does not know of the touch yet."""
    fill(store, {"r": Contained({"m": Node()}, {"a": False, "b": False})})
    assert store.touch(Repository("r"), Digest.parse(digest("a")))
    assert store.touch(Repository("r"), Digest.parse(digest("m")))
    collect(store)
    assert ({("r", digest("m"))}, {("r", digest("a"))}) == held(store)[:2]


class LateTouches(Touches):
    """Touches in which a writer asks at the worst moment: after the flush, before the victims are blocked."""

    late: tuple[Key, ...] = ()

    def block(self, keys: object) -> set[Key]:
        for repository, name in self.late:
            assert self.touch(repository, name, START)
        spared = super().block(keys)  # type: ignore[arg-type]
        assert not self.touch("r", digest("victim"), START), "a victim must be refused while it is removed"
        return spared


def test_a_touch_during_the_change_counts(store: LocalStore) -> None:
    """Touched between the choice of victims and their removal: spared, with all it holds. Afterwards nothing is
    blocked, and other victims went."""
    world = {"r": Contained({"late": Node(children=("held",)), "held": Node(), "victim": Node()}, {"victim": False})}
    fill(store, world)
    touches = LateTouches()
    touches.late = (("r", digest("late")),)
    store.touches = touches
    collect(store)
    assert ({("r", digest("late")), ("r", digest("held"))}, set()) == held(store)[:2]
    assert touches.touch("r", digest("victim"), START)


def test_what_changes_after_the_plan_stays(store: LocalStore) -> None:
    """A tag and a link that come while the collection runs its list are respected: each batch decides again."""
    many = {f"b{number:04}": False for number in range(BATCH_ROWS)}
    fill(store, {"r": Contained({"m": Node()}, {**many, "named": False})})
    expected = digest("named")

    def meddle(progress: Mapping[str, object]) -> None:
        if progress["step"] == "manifests":
            store.index.write_blocking(
                lambda c: c.execute("INSERT INTO edges VALUES (0, 'parent', ?, 'blob', 1)", (expected,))
            )

    collect(store, meddle)
    assert {("r", expected)} == held(store)[1]


def test_listeners_hear_of_repositories_that_changed(store: LocalStore) -> None:
    """Caches are told about repositories that lost something, and about no other."""
    tagged, touched = Contained({"m": Node(tagged=True)}), Contained({}, {"touched": False})
    fill(store, {"c": touched, "a": Contained({"m": Node()}), "b": tagged})
    store.touch(Repository("c"), Digest.parse(digest("touched")))
    heard: list[str] = []
    store.events.on_change(heard.append)
    collect(store)
    assert ["a"] == heard


def test_a_failing_change_gives_touches_back(store: LocalStore) -> None:
    """Where the index cannot take the change, the touches that it had flushed wait again, and nothing is blocked."""
    fill(store, {"r": Contained({}, {"a": False, "b": False})})
    store.touch(Repository("r"), Digest.parse(digest("a")))
    store.index.write_blocking(
        lambda c: c.execute("CREATE TEMP TRIGGER no BEFORE DELETE ON links BEGIN SELECT raise(ABORT, 'no'); END")
    )
    with pytest.raises(Exception, match="no"):
        collect(store)
    assert 1 == len(store.touches)
    assert store.touch(Repository("r"), Digest.parse(digest("b")))


def test_one_collection_at_a_time(store: LocalStore) -> None:
    """A second collection is refused while the first runs, and welcome after it, however that ended."""
    fill(store, {"r": Contained({}, {"a": False})})

    def nested(progress: Mapping[str, object]) -> None:
        collect(store)

    with pytest.raises(GcRunning):
        collect(store, nested)
    assert isinstance(collect(store), GcReport)


def test_schedule_collects_and_unlinks(tmp_path: Path) -> None:
    """The schedule collects at its interval, and counts what it unlinked."""

    async def scenario() -> GcSchedule:
        store = LocalStore.open(tmp_path / "data", replace(SETTINGS, grace_s=0.0, unlink_delay_s=0.0))
        await store.start()
        await push_blob(store, Repository("r"), b"12345")
        schedule = GcSchedule(store, 0.05)
        running = asyncio.create_task(schedule.run())
        async with asyncio.timeout(10):
            while not schedule.unlinked:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        await store.close()
        return schedule

    schedule = asyncio.run(scenario())
    assert (1, 5) == (schedule.unlinked, schedule.unlinked_bytes)
    assert schedule.last_success > 0


def test_a_cancelled_collection_has_ended(tmp_path: Path) -> None:
    """Cancelling waits for the batch at hand: the store can be closed at once, and later work is not begun."""

    async def scenario() -> int:
        store = LocalStore.open(tmp_path / "data", replace(SETTINGS, grace_s=-1.0))
        for name in ("a", "b", "c"):
            await push_blob(store, Repository(name), name.encode())
        schedule = GcSchedule(store, 0)
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def begin(progress: Mapping[str, object]) -> None:
            loop.call_soon_threadsafe(begun.set)

        work = asyncio.create_task(schedule.collect(begin))
        await begun.wait()
        work.cancel()
        await asyncio.wait({work})
        assert work.cancelled()
        left = len(held(store)[2])
        await store.close()
        return left

    assert 3 == asyncio.run(scenario())


def test_a_manifest_put_after_the_collection_is_refused(tmp_path: Path, clock: Clock) -> None:
    """A manifest whose blobs went is not accepted, and is once they were pushed again."""

    async def scenario() -> None:
        store = LocalStore.open(tmp_path / "data", SETTINGS, clock)
        repository, manifest = Repository("r"), image(b"config", b"layer")
        for data in (b"config", b"layer"):
            await push_blob(store, repository, data)
        clock.now += GRACE_S + 1
        await asyncio.to_thread(collect, store)
        with pytest.raises(ManifestBlobUnknown):
            await store.put_manifest(repository, Tag("t"), manifest, "tester")
        for data in (b"config", b"layer"):
            await push_blob(store, repository, data)
        await store.put_manifest(repository, Tag("t"), manifest, "tester")
        clock.now += GRACE_S + 1
        assert 0 == (await asyncio.to_thread(collect, store)).links
        await store.close()

    asyncio.run(scenario())

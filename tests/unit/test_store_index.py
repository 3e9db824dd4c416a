"""The index: durable before it answers, one change's error is nobody else's, and a full disk is survived."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from sluice.errors import DataDirectoryTooNew, NameUnknown, StorageFull, StoreDamaged, Unavailable
from sluice.store import index as module
from sluice.store.index import Index
from sluice.store.schema import APPLICATION_ID, SCHEMA_VERSION


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index.open(tmp_path / "index.sqlite")
    yield opened
    opened.close()


def add(name: str) -> module.Change[int | None]:
    return lambda connection: connection.execute("INSERT INTO repositories(name) VALUES (?)", (name,)).lastrowid


def names(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM repositories ORDER BY name")]


class Gate:
    """Holds the writer thread inside a change, so that what is submitted meanwhile becomes one batch."""

    def __init__(self, index: Index) -> None:
        self._open = threading.Event()
        entered = threading.Event()

        def wait(_: sqlite3.Connection) -> None:
            entered.set()
            assert self._open.wait(10)

        self.future = index.submit(wait)
        assert entered.wait(10)

    def open(self) -> None:
        self._open.set()


def test_a_new_index_has_the_schema(tmp_path: Path) -> None:
    """Identifier, version, write-ahead log and mode 0600 are what the schema and the store promise."""
    path = tmp_path / "index.sqlite"
    Index.open(path).close()
    connection = sqlite3.connect(path)
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "journal_mode")
    ]
    connection.close()
    assert found == [APPLICATION_ID, SCHEMA_VERSION, "wal"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_commit_is_synced(index: Index) -> None:
    """The writer's connection is at synchronous=FULL (2), with foreign keys checked."""

    def settings(connection: sqlite3.Connection) -> list[int]:
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "foreign_keys")]

    assert index.write_blocking(settings) == [2, 1]


def test_a_change_is_committed_when_it_returns(index: Index, tmp_path: Path) -> None:
    """A connection of another library sees the row as soon as ``write`` has returned."""
    asyncio.run(index.write(add("a")))
    other = sqlite3.connect(tmp_path / "index.sqlite")
    assert names(other) == ["a"]
    other.close()


def test_what_waits_shares_one_commit(index: Index) -> None:
    """Two hundred changes that wait for the writer are one transaction."""
    statements: list[str] = []
    index.write_blocking(lambda connection: connection.set_trace_callback(statements.append))
    gate = Gate(index)
    futures = [index.submit(add(f"r{number:03}")) for number in range(200)]
    statements.clear()
    gate.open()
    assert len({future.result(10) for future in futures}) == 200
    index.write_blocking(lambda connection: connection.set_trace_callback(None))
    # The gate's own, that of the two hundred; the statement that ends the tracing may see the begin of its own.
    assert statements.count("COMMIT") == 2
    assert len(index.read(names)) == 200


def test_an_error_takes_back_its_own_change_only(index: Index) -> None:
    """In one batch, changes before and after a failing one are kept; the failing one leaves nothing."""

    def fail_halfway(connection: sqlite3.Connection) -> None:
        add("half")(connection)
        raise NameUnknown("on purpose")

    def break_a_rule(connection: sqlite3.Connection) -> None:
        add("other half")(connection)
        add("before")(connection)

    gate = Gate(index)
    futures: list[Future[object]] = [
        index.submit(change) for change in (add("before"), fail_halfway, break_a_rule, add("after"))
    ]
    gate.open()
    assert [type(future.exception(10)) for future in futures] == [type(None), NameUnknown, StoreDamaged, type(None)]
    assert index.read(names) == ["after", "before"]


def test_content_in_use_cannot_lose_its_row(index: Index) -> None:
    """Foreign keys keep contents that a repository still links."""

    def link(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO contents VALUES ('sha256:x', 1, 0)")
        connection.execute("INSERT INTO links VALUES (?, 'sha256:x', 0, NULL)", (add("a")(connection),))

    index.write_blocking(link)
    with pytest.raises(StoreDamaged):
        index.write_blocking(lambda connection: connection.execute("DELETE FROM contents"))


def test_a_full_disk_fails_the_batch_and_nothing_after_it(index: Index) -> None:
    """SQLITE_FULL fails every change of its batch with StorageFull and keeps none; with room again, writes go on."""

    def limit(pages: int) -> module.Change[object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    index.write_blocking(limit(1))  # SQLite takes that as: not one page more
    gate = Gate(index)
    small, large = index.submit(add("small")), index.submit(add("x" * 1_000_000))
    gate.open()
    assert [type(future.exception(10)) for future in (small, large)] == [StorageFull, StorageFull]
    assert index.read(names) == []
    index.write_blocking(limit(1 << 30))
    index.write_blocking(add("y" * 1_000_000))
    assert [len(name) for name in index.read(names)] == [1_000_000]


def test_a_failing_commit_tells_nobody_success(index: Index) -> None:
    """Where COMMIT itself fails, changes that ran well fail too, and nothing of them is kept."""

    def break_at_commit(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute("INSERT INTO links VALUES (77, 'sha256:none', 0, NULL)")

    gate = Gate(index)
    futures: list[Future[object]] = [index.submit(add("good")), index.submit(break_at_commit)]
    gate.open()
    assert [type(future.exception(10)) for future in futures] == [StoreDamaged, StoreDamaged]
    assert index.read(names) == []
    index.write_blocking(add("next"))
    assert index.read(names) == ["next"]


def test_a_cancelled_change_does_not_run(index: Index) -> None:
    """A request that is cancelled before its change's turn leaves no trace."""

    async def cancel() -> None:
        gate = Gate(index)
        task = asyncio.create_task(index.write(add("never")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await index.write(add("after"))

    asyncio.run(cancel())
    assert index.read(names) == ["after"]


def test_too_many_changes_are_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """One change more than ``CHANGES_WAITING_MAX`` is refused at once as temporary, and the others still run."""
    monkeypatch.setattr(module, "CHANGES_WAITING_MAX", 3)
    gate = Gate(index)
    futures = [index.submit(add(name)) for name in "abc"]
    with pytest.raises(Unavailable, match="3 index changes"):
        index.submit(add("d"))
    gate.open()
    for future in futures:
        future.result(10)
    assert index.read(names) == ["a", "b", "c"]


def test_a_read_sees_one_moment(index: Index) -> None:
    """Two statements of one query see the same snapshot, though a write is committed between them."""

    def twice(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        index.write_blocking(add("between"))
        return before, names(connection)

    assert index.read(twice) == ([], [])
    assert index.read(names) == ["between"]


def test_a_read_cannot_write(index: Index) -> None:
    """A query that writes to the index is refused; temporary tables are its own affair."""
    with pytest.raises(StoreDamaged):
        index.read(add("a"))
    index.read(lambda connection: connection.execute("CREATE TEMP TABLE t(x)").execute("DROP TABLE t"))
    assert index.read(names) == []


def test_close_finishes_what_waits(tmp_path: Path) -> None:
    """Changes that were submitted before ``close`` are committed; later calls are refused as temporary."""
    index = Index.open(tmp_path / "index.sqlite")
    gate = Gate(index)
    future = index.submit(add("last"))
    closing = threading.Thread(target=index.close)
    closing.start()
    gate.open()
    closing.join(10)
    assert future.result(0) == 1
    index.close()
    for call in (lambda: index.write_blocking(add("x")), lambda: index.read(names)):
        with pytest.raises(Unavailable):
            call()
    again = Index.open(tmp_path / "index.sqlite")
    assert again.read(names) == ["last"]
    again.close()


def test_a_newer_index_is_left_alone(tmp_path: Path) -> None:
    """A schema version above ours is refused with the remedy, and the file keeps its bytes."""
    path = tmp_path / "index.sqlite"
    Index.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DataDirectoryTooNew, match="start the newer Sluice"):
        Index.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("script", ["CREATE TABLE t(x)", f"PRAGMA user_version = {SCHEMA_VERSION}"])
def test_another_programs_database_is_refused(script: str, tmp_path: Path) -> None:
    """A SQLite file that Sluice did not make is refused by name."""
    path = tmp_path / "index.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(script)
    connection.commit()
    connection.close()
    with pytest.raises(StoreDamaged, match=r"index\.sqlite"):
        Index.open(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Damage of the file's head is an error of ours, not a traceback."""
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"\xff" * 8192)
    with pytest.raises(StoreDamaged, match="not a database"):
        Index.open(path)

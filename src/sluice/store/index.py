"""The index: one SQLite file, one writer thread, any number of readers.

Every write of the store ends here, as a *change*: a function of a connection. The writer thread takes all changes that
wait, runs each inside a savepoint of one transaction and commits once, so that a hundred pushes that finish together
share one fsync (group commit). A change that raises takes back its own work only. A future is resolved after the
commit, never before: what was answered is on the disk (WAL with ``synchronous=FULL``: the log is fsynced at each
commit).

A change neither commits nor rolls back (``executescript`` commits). Changes run one at a time and may take in-memory
locks of ``store.touches`` only: a content lock is held by threads that wait for this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sluice.errors import DataDirectoryTooNew, SluiceError, StorageFull, StoreDamaged, Unavailable
from sluice.store.paths import FILE_MODE, fsync_directory
from sluice.store.schema import APPLICATION_ID, CACHE_TABLES, SCHEMA_VERSION, TABLES
from sluice.store.threads import submit
from sluice.store.upgrade import upgrade

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]
_Pending = tuple[Change[Any], "Future[Any]"]

CHANGES_WAITING_MAX = 10_000  # changes
BATCH_MAX = 512  # changes in one transaction
READ_THREADS = 4
IDLE_READERS_MAX = 16  # connections kept open for the next reader
BUSY_TIMEOUT_MS = 10_000
WAL_SIZE_LIMIT_BYTES = 64 << 20

# Primary result codes, https://sqlite.org/rescode.html; extended codes carry them in their low byte.
_IOERR, _FULL = 10, 13
_FULL_CODES = frozenset(
    {
        _FULL,
        10 | 3 << 8,  # SQLITE_IOERR_WRITE: a quota or a limit on the file's size, where ENOSPC would be SQLITE_FULL
        10 | 19 << 8,  # SQLITE_IOERR_SHMSIZE: no room to grow the shared-memory file
    }
)

_log = logging.getLogger(__name__)


class Index:
    """The open index. ``open`` makes one, ``close`` ends it; everything else may be called from any thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._queue: queue.Queue[_Pending | None] = queue.Queue(CHANGES_WAITING_MAX + 1)
        self._gate = threading.Lock()
        self._closed = False
        self._readers: list[sqlite3.Connection] = []
        self._fetchers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="sluice-index-read")
        self._writer = threading.Thread(target=self._run, name="sluice-index-write", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open, upgrade or create the index; raises DataDirectoryTooNew or StoreDamaged. Reads no table."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except sqlite3.Error as error:
            connection.close()
            raise _translate(error) from error
        except SluiceError:
            connection.close()
            raise
        fsync_directory(path.parent)
        return cls(path, connection)

    def submit(self, change: Change[T]) -> Future[T]:
        """Queue a change. The future resolves after the commit, in the writer thread; cancelled before its turn, the
        change does not run. Raises Unavailable when too many wait or the index is closed."""
        future: Future[T] = Future()
        with self._gate:
            if self._closed:
                raise Unavailable("the index is closed: the server is stopping")
            if self._queue.qsize() >= CHANGES_WAITING_MAX:
                raise Unavailable(f"{CHANGES_WAITING_MAX} index changes are waiting for the disk: try again")
            self._queue.put_nowait((change, future))
        return future

    async def write(self, change: Change[T]) -> T:
        """Run a change and wait until it is durable; raises what the change raises, StorageFull or Unavailable."""
        return await asyncio.wrap_future(self.submit(change))

    def write_blocking(self, change: Change[T]) -> T:
        """``write`` for threads; never call it from the event loop or from a change."""
        return self.submit(change).result()

    def read(self, query: Change[T]) -> T:
        """Run a query on one consistent snapshot, blocking. The connection is read-only, but for TEMP tables."""
        connection = self._borrow()
        try:
            connection.execute("BEGIN")
            try:
                return query(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _translate(error) from error
        finally:
            self._give_back(connection)

    async def fetch(self, query: Change[T]) -> T:
        """``read`` without blocking the event loop."""
        return await asyncio.wrap_future(submit(self._fetchers, self.read, query))

    def close(self) -> None:
        """Finish the changes that wait, then close; idempotent."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put_nowait(None)
        self._writer.join()
        self._fetchers.shutdown()
        with self._gate:
            readers, self._readers = self._readers, []
        for reader in readers:
            reader.close()
        self._connection.close()

    def _borrow(self) -> sqlite3.Connection:
        with self._gate:
            if self._closed:
                raise Unavailable("the index is closed: the server is stopping")
            if self._readers:
                return self._readers.pop()
        try:
            connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        except sqlite3.Error as error:
            raise _translate(error) from error
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._gate:
            if not self._closed and len(self._readers) < IDLE_READERS_MAX:
                self._readers.append(connection)
                return
        connection.close()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._commit(batch)

    def _next_batch(self) -> list[_Pending]:
        """All that waits, up to ``BATCH_MAX``; empty when the index closes."""
        item = self._queue.get()
        batch: list[_Pending] = []
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH_MAX:
                return batch
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch
        if batch:  # closing, with changes before it: they first, then the mark again
            self._queue.put_nowait(None)
        return batch

    def _commit(self, batch: list[_Pending]) -> None:
        """One transaction for the whole batch. Where SQLite itself fails, the whole batch fails, and nothing of it is
        kept; the next one starts afresh."""
        running = [pending for pending in batch if pending[1].set_running_or_notify_cancel()]
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change, future in running:
                outcomes.append((future, *self._apply(change)))
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._take_back(error)
            for _, future in running:
                future.set_exception(_translate(error))
            return
        for future, result, failure in outcomes:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

    def _apply(self, change: Change[T]) -> tuple[T | None, Exception | None]:
        """The change's result or its error. Raises sqlite3.Error where the transaction cannot go on."""
        self._connection.execute("SAVEPOINT one_change")
        try:
            result = change(self._connection)
        except sqlite3.Error as error:
            if _primary(error) in {_IOERR, _FULL} or not self._connection.in_transaction:
                raise
            self._undo_change()
            return None, _translate(error)
        except Exception as error:  # noqa: BLE001 - a change's own error belongs to whoever waits for its future
            self._undo_change()
            return None, error
        self._connection.execute("RELEASE one_change")
        return result, None

    def _undo_change(self) -> None:
        self._connection.execute("ROLLBACK TO one_change")
        self._connection.execute("RELEASE one_change")

    def _take_back(self, error: sqlite3.Error) -> None:
        _log.error("index transaction failed: %s", error)
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise DataDirectoryTooNew(
            f"{path} has schema version {version}, this Sluice knows up to {SCHEMA_VERSION}: start the newer Sluice"
            " that wrote it, or restore a backup from before the upgrade"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
    if version == 0:
        _create(connection, path)
    elif application != APPLICATION_ID:
        raise StoreDamaged(f"{path} has application id {application:#x}, not Sluice's: move that file away")
    elif version < SCHEMA_VERSION:
        upgrade(connection, path, version)


def _create(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables in one transaction, which a crash leaves done or undone."""
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreDamaged(f"{path} has tables but no schema version: it is not Sluice's, move that file away")
    connection.executescript(
        f"BEGIN IMMEDIATE; {TABLES} {CACHE_TABLES} PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _translate(error: sqlite3.Error) -> SluiceError:
    """SQLite's error as ours; nothing outside this module sees the library's."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _FULL_CODES:
        return StorageFull(f"no room to write the index ({error}): free disk space and try again")
    if code & 0xFF == _IOERR:
        return Unavailable(f"the index cannot be read or written ({error}): check the disk of the data directory")
    return StoreDamaged(f"the index failed ({error}): check it with `sluice fsck`")

"""Content files: published whole or not at all, healed by a push, and never served wrong."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sluice.errors import NameUnknown, StorageFull, StoreDamaged
from sluice.oci.digest import Digest
from sluice.store import blobs as module
from sluice.store.blobs import NEAR_BYTES, Contents, LocalBlob
from sluice.store.changes import hold_content
from sluice.store.index import Index
from sluice.store.paths import Paths, prepare

DATA = b"0123456789" * 1000
DIGEST = Digest.of(DATA)


class Files:
    """A data directory with its index and content files."""

    def __init__(self, data: Path) -> None:
        self.paths: Paths = prepare(data)
        self.index = Index.open(self.paths.index)
        self.contents = Contents(self.paths, self.index)
        self.readers = ThreadPoolExecutor(2)

    def publish(self, record: Callable[[sqlite3.Connection], None] | None = None) -> Path:
        """Publish ``DATA``; returns the staged file's name."""
        staged = self.contents.stage(f"staged-{threading.get_ident()}", DATA)
        self.contents.publish(staged, DIGEST, len(DATA), record or enter)
        return staged

    def read(self) -> bytes:
        """``DATA`` as the store has it, read through a blob."""
        blob = self.contents.open(DIGEST, len(DATA), self.readers)
        try:
            return asyncio.run(blob.read(0, blob.size or 0))
        finally:
            blob.close()

    def file(self) -> Path:
        return self.paths.content(DIGEST)


def enter(connection: sqlite3.Connection) -> None:
    hold_content(connection, DIGEST, len(DATA), 1.0)


def fail(connection: sqlite3.Connection) -> None:
    enter(connection)
    raise NameUnknown("on purpose")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    opened = Files(tmp_path)
    yield opened
    opened.index.close()
    opened.readers.shutdown()


def test_published_content_has_file_and_row(files: Files) -> None:
    """The file carries the digest's name, is private, and nothing stays behind in ``uploads/``."""
    assert not files.contents.intact(DIGEST, len(DATA))
    files.publish()
    assert files.contents.intact(DIGEST, len(DATA))
    assert files.file().read_bytes() == DATA
    assert files.file().stat().st_mode & 0o777 == 0o600
    assert os.listdir(files.paths.uploads) == []


def test_a_failed_record_publishes_nothing(files: Files) -> None:
    """Where the index refuses, there is no content file, and the bytes are with their upload for another try."""
    with pytest.raises(NameUnknown):
        files.publish(fail)
    assert not files.file().exists()
    (staged,) = files.paths.uploads.iterdir()
    assert staged.read_bytes() == DATA
    files.contents.publish(staged, DIGEST, len(DATA), enter)
    assert files.read() == DATA


def test_a_full_index_publishes_nothing(files: Files) -> None:
    """SQLITE_FULL at the very end is StorageFull, and trying again with room succeeds."""

    def enter_much(connection: sqlite3.Connection) -> None:
        enter(connection)
        connection.execute("INSERT INTO repositories(name) VALUES (?)", ("x" * 1_000_000,))

    files.index.write_blocking(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
    with pytest.raises(StorageFull):
        files.publish(enter_much)
    assert not files.file().exists()
    files.index.write_blocking(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    (staged,) = files.paths.uploads.iterdir()
    files.contents.publish(staged, DIGEST, len(DATA), enter_much)
    assert files.read() == DATA


def test_held_content_is_not_written_again(files: Files) -> None:
    """A second push of the same content keeps the file that is there, and drops its own."""
    files.publish()
    before = files.file().stat().st_ino
    staged = files.publish()
    assert (files.file().stat().st_ino, staged.exists()) == (before, False)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 5), lambda path: path.write_bytes(b"")])
def test_a_push_heals_a_damaged_file(damage: Callable[[Path], object], files: Files) -> None:
    """A row without an intact file is not taken for content: the next push puts the file back."""
    files.publish()
    damage(files.file())
    assert not files.contents.intact(DIGEST, len(DATA))
    files.publish()
    assert files.read() == DATA


def test_a_file_without_a_row_is_replaced(files: Files) -> None:
    """What a crash left under the right name was never acknowledged and need not be right."""
    files.file().write_bytes(b"?" * len(DATA))
    files.publish()
    assert files.read() == DATA


def test_a_push_lifts_a_condemnation(files: Files) -> None:
    """Content whose file waits to be unlinked is held again after a push."""
    files.publish()

    def condemn(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM contents")
        connection.execute("INSERT INTO condemned(digest, condemned_at) VALUES (?, 1.0)", (str(DIGEST),))

    files.index.write_blocking(condemn)
    files.publish()
    assert files.index.read(lambda c: c.execute("SELECT count(*) FROM condemned").fetchone()[0]) == 0
    assert files.read() == DATA


def test_pushes_of_one_digest_at_once_all_succeed(files: Files) -> None:
    """Eight threads publish the same content; the last state is one intact file, and no staging file stays."""
    with ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(files.publish) for _ in range(40)]:
            job.result(30)
    assert files.read() == DATA
    assert os.listdir(files.paths.uploads) == []


def test_whoever_unlinks_is_kept_out_until_the_row_is_there(files: Files) -> None:
    """The content's lock is held from the rename to the commit: looking at row and file under it, one sees both or
    neither."""
    seen: list[tuple[bool, bool]] = []
    entering, look = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        entering.set()
        assert not look.wait(0.2)  # the other thread is at the lock by now, and must stay there
        enter(connection)

    def other() -> None:
        assert entering.wait(10)
        with files.contents.content_lock(DIGEST):
            look.set()
            seen.append((files.file().exists(), files.contents.intact(DIGEST, len(DATA))))

    thread = threading.Thread(target=other)
    thread.start()
    files.publish(slow)
    thread.join(10)
    assert seen == [(True, True)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(Path.unlink, "missing"), (lambda path: os.truncate(path, 5), "has 5 bytes, not 10000")],
)
def test_damage_is_an_error_and_never_other_bytes(damage: Callable[[Path], object], message: str, files: Files) -> None:
    """A missing or cut file is StoreDamaged on opening, with the remedy."""
    files.publish()
    damage(files.file())
    with pytest.raises(StoreDamaged, match=rf"{message}.*fsck --repair"):
        files.contents.open(DIGEST, len(DATA), files.readers)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"?" * len(DATA)), Path.unlink])
def test_small_content_is_verified_when_read(damage: Callable[[Path], object], files: Files) -> None:
    """A flipped manifest is StoreDamaged, whatever its length."""
    files.publish()
    assert files.contents.read(DIGEST, len(DATA)) == DATA
    damage(files.file())
    with pytest.raises(StoreDamaged):
        files.contents.read(DIGEST, len(DATA))


def test_an_open_blob_outlives_its_file(files: Files) -> None:
    """Unlinked while open, a blob reads on; a file cut while open ends in StoreDamaged, not in fewer bytes."""
    files.publish()
    blob = files.contents.open(DIGEST, len(DATA), files.readers)
    kept = os.open(files.file(), os.O_RDWR)
    files.file().unlink()
    assert asyncio.run(blob.read(5, 20)) == DATA[5:25]
    os.truncate(kept, 100)
    os.close(kept)
    with pytest.raises(StoreDamaged, match="ends at byte 100"):
        asyncio.run(blob.read(90, 20))
    blob.close()
    with pytest.raises(StoreDamaged, match="closed"):
        asyncio.run(blob.read(0, 1))


def test_the_event_loop_never_waits_for_the_disk(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a read may have to wait, it is done in a reader thread, and gives the same bytes; what is in the page cache
    is read at once."""
    files.publish()
    threads: list[int] = []

    def watch(blob: LocalBlob) -> None:
        pread = blob._pread

        def watched(offset: int, length: int) -> bytes:
            threads.append(threading.get_ident())
            return pread(offset, length)

        blob._pread = watched  # type: ignore[method-assign]

    for flags in (module._NOWAIT, 0):  # 0: a system that cannot say whether a page is cached
        monkeypatch.setattr(module, "_NOWAIT", flags)
        blob = files.contents.open(DIGEST, len(DATA), files.readers)
        watch(blob)
        assert asyncio.run(blob.read(1, 9_000)) == DATA[1:9_001]
        blob.close()
    assert [thread == threading.get_ident() for thread in threads] == [True, False]


def test_what_was_dropped_from_the_page_cache_is_asked_about_again(files: Files) -> None:
    """What lies within a stretch that was found in the page cache is read at once, what lies beyond is looked up, and
    both give the bytes."""
    data = random.Random(7).randbytes(3 * NEAR_BYTES + 11)
    digest = Digest.of(data)
    files.paths.content(digest).write_bytes(data)
    blob = files.contents.open(digest, len(data), files.readers)
    assert blob._is_near(0, 1000)
    assert (blob._near_from, blob._near_to) == (0, NEAR_BYTES)
    assert asyncio.run(blob.read(NEAR_BYTES - 10, 20)) == data[NEAR_BYTES - 10 : NEAR_BYTES + 10]
    assert (blob._near_from, blob._near_to) == (NEAR_BYTES - 10, 2 * NEAR_BYTES - 10)
    assert asyncio.run(blob.read(3 * NEAR_BYTES, 11)) == data[-11:]
    assert (blob._near_from, blob._near_to) == (3 * NEAR_BYTES, len(data))
    blob.close()


def test_closing_waits_for_reads_in_threads(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read whose request was cancelled keeps the descriptor until its thread is done, so that the number cannot name
    another file meanwhile; then it is released."""
    monkeypatch.setattr(module, "_NOWAIT", 0)
    files.publish()
    blob = files.contents.open(DIGEST, len(DATA), files.readers)
    began, finish, results, pread = threading.Event(), threading.Event(), [], blob._pread

    def slow(offset: int, length: int) -> bytes:
        began.set()
        assert finish.wait(10)
        results.append(pread(offset, length))
        return results[0]

    async def cancel() -> None:
        task = asyncio.create_task(blob.read(0, 10))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    blob._pread = slow  # type: ignore[method-assign]
    asyncio.run(cancel())
    descriptor = blob._descriptor
    blob.close()
    os.fstat(descriptor)
    finish.set()
    files.readers.shutdown()
    assert results == [DATA[:10]]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_forgotten_blob_is_closed(files: Files) -> None:
    """A reader that nobody closes gives its descriptor back when it is collected."""
    files.publish()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        files.contents.open(DIGEST, len(DATA), files.readers)
    assert len(os.listdir("/proc/self/fd")) == before

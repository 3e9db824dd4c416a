"""Upload sessions: bounded, resumable after anything, and honest about their offset."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sluice.errors import DigestInvalid, StorageFull, TooManyUploads, UploadInvalid, UploadUnknown
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings
from sluice.store.uploads import BATCH_BYTES_MAX, BATCH_CHUNKS_MAX
from sluice.testing.content import body, new_repository

REPOSITORY = Repository("team/app")
DATA = secrets.token_bytes(5 * BATCH_BYTES_MAX + 17)


class Clock:
    """Time that stands until it is moved."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def with_store(
    data: Path,
    work: Callable[[LocalStore], Awaitable[None]],
    clock: Callable[[], float] | None = None,
    **settings: float,
) -> None:
    """Run ``work`` on the store in ``data`` and close it; background work does not run."""

    async def run() -> None:
        values = StoreSettings(**{"reserve_bytes": 0, **settings})  # type: ignore[arg-type]
        store = LocalStore.open(data, values, clock) if clock else LocalStore.open(data, values)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond the limit (EFBIG), as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leftovers(store: LocalStore) -> list[str]:
    return sorted(os.listdir(store.paths.uploads))


def test_open_sessions_are_limited(tmp_path: Path) -> None:
    """One session more than the limit is refused; a cancelled and a committed one make room."""

    async def work(store: LocalStore) -> None:
        first, second = [await store.uploads.start(REPOSITORY, "sha256") for _ in range(2)]
        with pytest.raises(TooManyUploads, match=r"limits\.uploads is 2"):
            await store.uploads.start(REPOSITORY, "sha256")
        await store.uploads.cancel(REPOSITORY, first)
        await store.uploads.commit(REPOSITORY, second, Digest.of(b""))
        started = await asyncio.gather(
            *(store.uploads.start(REPOSITORY, "sha256") for _ in range(5)), return_exceptions=True
        )
        assert [type(one) for one in started] == [str, str, TooManyUploads, TooManyUploads, TooManyUploads]

    with_store(tmp_path, work, uploads_max=2)


def test_a_session_survives_a_restart(tmp_path: Path) -> None:
    """After the process is gone, the session stands where its bytes are; the commit verifies old and new bytes."""
    sessions: list[str] = []

    async def begin(store: LocalStore) -> None:
        for _ in range(2):
            sessions.append(await store.uploads.start(REPOSITORY, "sha512"))
            await store.uploads.append(REPOSITORY, sessions[-1], 0, body(DATA[:700_000]))

    async def finish(store: LocalStore) -> None:
        good, bad = sessions
        assert store.uploads.count == 2
        assert await store.uploads.offset(REPOSITORY, good) == 700_000
        await store.uploads.append(REPOSITORY, good, 700_000, body(DATA[700_000:]))
        await store.uploads.commit(REPOSITORY, good, Digest.of(DATA, "sha512"))
        with pytest.raises(DigestInvalid):
            await store.uploads.commit(REPOSITORY, bad, Digest.of(DATA, "sha512"))
        assert (store.uploads.count, leftovers(store)) == (0, [])
        reader = await store.open_blob(REPOSITORY, Digest.of(DATA, "sha512"))
        assert await reader.read(0, reader.size or 0) == DATA
        reader.close()

    with_store(tmp_path, begin)
    with_store(tmp_path, finish)


def test_a_note_that_a_crash_cut_is_no_session(tmp_path: Path) -> None:
    """What a power cut leaves of a session's note is unknown to clients, and swept when it is old enough."""
    names = ["0" * 32, "1" * 32, "2" * 32]

    async def work(store: LocalStore) -> None:
        for name in names:
            with pytest.raises(UploadUnknown):
                await store.uploads.offset(REPOSITORY, name)
        assert await store.uploads.expire(3600.0) == 0
        for path in store.paths.uploads.iterdir():
            os.utime(path, (0, 0))
        assert await store.uploads.expire(3600.0) == 3
        assert leftovers(store) == []

    uploads = tmp_path / "uploads"
    with_store(tmp_path, _nothing)
    for name, text in zip(
        names, ("", '{"repository": "team/app"', '{"algorithm": "sha256", "started_at": 1}'), strict=True
    ):
        (uploads / f"{name}.json").write_text(text)
    with_store(tmp_path, work)


async def _nothing(store: LocalStore) -> None:
    assert store.uploads.count == 0


def test_stale_sessions_expire(tmp_path: Path) -> None:
    """A session ends when no byte came for longer than the age; one that grew meanwhile, and one that is just
    receiving, stay."""
    clock = Clock()

    async def work(store: LocalStore) -> None:
        stale, grown, receiving = [await store.uploads.start(REPOSITORY, "sha256") for _ in range(3)]
        hold = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x"
            await hold.wait()

        task = asyncio.create_task(store.uploads.append(REPOSITORY, receiving, 0, slow()))
        await asyncio.sleep(0.05)
        clock.now += 100.0
        await store.uploads.append(REPOSITORY, grown, 0, body(b"y"))
        clock.now += 50.0
        assert [info.session for info in await store.uploads.list() if info.offset == 1] == [grown]
        assert await store.uploads.expire(120.0) == 1
        with pytest.raises(UploadUnknown):
            await store.uploads.offset(REPOSITORY, stale)
        hold.set()
        assert await task == 1
        assert sorted(info.session for info in await store.uploads.list()) == sorted([grown, receiving])

    with_store(tmp_path, work, clock)


@pytest.mark.parametrize("limit", [2 * BATCH_BYTES_MAX, 2 * BATCH_BYTES_MAX + 1, 3 * BATCH_BYTES_MAX - 1])
def test_a_full_disk_leaves_a_true_offset(limit: int, tmp_path: Path) -> None:
    """Cut off inside a batch, the upload stands at the last whole one; with room again it goes on to the right blob."""

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")
        pieces = [DATA[start : start + 100_000] for start in range(0, len(DATA), 100_000)]
        with file_size_limit(limit), pytest.raises(StorageFull):
            await store.uploads.append(REPOSITORY, session, 0, body(*pieces))
        offset = await store.uploads.offset(REPOSITORY, session)
        held = (store.paths.uploads / session).read_bytes()
        assert 0 < offset <= limit
        assert held == DATA[:offset]
        await store.uploads.append(REPOSITORY, session, offset, body(DATA[offset:]))
        assert (await store.uploads.commit(REPOSITORY, session, Digest.of(DATA))).size == len(DATA)

    with_store(tmp_path, work)


def test_the_reserve_stops_uploads(tmp_path: Path) -> None:
    """Below the reserve nothing starts and nothing is written, what is held can be read, and ``writable`` says so."""
    sessions: list[str] = []

    async def prepare(store: LocalStore) -> None:
        sessions.append(await store.uploads.start(REPOSITORY, "sha256"))
        done = await store.uploads.start(REPOSITORY, "sha256")
        await store.uploads.append(REPOSITORY, done, 0, body(b"held"))
        await store.uploads.commit(REPOSITORY, done, Digest.of(b"held"))

    async def refuse(store: LocalStore) -> None:
        assert store.writable() is False
        with pytest.raises(StorageFull, match=r"storage\.reserve"):
            await store.uploads.start(REPOSITORY, "sha256")
        with pytest.raises(StorageFull):
            await store.uploads.append(REPOSITORY, sessions[0], 0, body(b"x"))
        assert await store.uploads.offset(REPOSITORY, sessions[0]) == 0
        reader = await store.open_blob(REPOSITORY, Digest.of(b"held"))
        assert await reader.read(0, 4) == b"held"
        reader.close()

    with_store(tmp_path, prepare)
    with_store(tmp_path, refuse, reserve_bytes=1 << 62)


def test_a_cancelled_request_keeps_bytes_in_order(tmp_path: Path) -> None:
    """Requests cancelled at any moment leave a prefix of the client's bytes; resuming from there gives the blob."""

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")
        offset = 0
        for step in range(12):

            async def trickle(start: int) -> AsyncIterator[bytes]:
                for position in range(start, len(DATA), 90_000):
                    yield DATA[position : position + 90_000]
                    await asyncio.sleep(0)
                await asyncio.Event().wait()  # the client sends its end never

            task = asyncio.create_task(store.uploads.append(REPOSITORY, session, offset, trickle(offset)))
            for _ in range(step):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            offset = await store.uploads.offset(REPOSITORY, session)
            assert (store.paths.uploads / session).read_bytes() == DATA[:offset] if offset else True
        assert offset > 0
        await store.uploads.append(REPOSITORY, session, offset, body(DATA[offset:]))
        assert (await store.uploads.commit(REPOSITORY, session, Digest.of(DATA))).size == len(DATA)

    with_store(tmp_path, work)


def test_a_cancelled_commit_ends_one_way_or_the_other(tmp_path: Path) -> None:
    """A client that leaves during its commit finds the blob, or the session to commit again; never neither."""

    async def work(store: LocalStore) -> None:
        for step in range(6):
            repository, data = new_repository(), secrets.token_bytes(1000)
            session = await store.uploads.start(repository, "sha256")
            await store.uploads.append(repository, session, 0, body(data))
            task = asyncio.create_task(store.uploads.commit(repository, session, Digest.of(data)))
            for _ in range(step):
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            try:
                await store.uploads.commit(repository, session, Digest.of(data))
            except UploadUnknown:
                assert (await store.stat_blob(repository, Digest.of(data))).size == 1000
        assert leftovers(store) == []

    with_store(tmp_path, work)


def test_requests_of_one_session_take_turns(tmp_path: Path) -> None:
    """A chunk that comes while another is received is not mixed into it."""

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")

        async def slow(letter: bytes) -> AsyncIterator[bytes]:
            for _ in range(5):
                yield letter * 10
                await asyncio.sleep(0.002)

        await asyncio.gather(
            *(store.uploads.append(REPOSITORY, session, None, slow(letter)) for letter in (b"a", b"b", b"c"))
        )
        held = (store.paths.uploads / session).read_bytes()
        assert held == b"a" * 50 + b"b" * 50 + b"c" * 50

    with_store(tmp_path, work)


def test_tiny_chunks_are_written_in_bounded_batches(tmp_path: Path) -> None:
    """More chunks than one system call takes arrive whole, empty ones included."""
    chunks = [bytes([number % 256]) * (number % 3) for number in range(2 * BATCH_CHUNKS_MAX + 5)]

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")
        await store.uploads.append(REPOSITORY, session, 0, body(*chunks))
        assert (store.paths.uploads / session).read_bytes() == b"".join(chunks)

    with_store(tmp_path, work)


def test_lost_bytes_are_not_committed(tmp_path: Path) -> None:
    """Where somebody cut the session's file, the commit is refused, although the bytes had the right digest."""

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")
        await store.uploads.append(REPOSITORY, session, 0, body(DATA))
        os.truncate(store.paths.uploads / session, 10)
        with pytest.raises(UploadInvalid, match=f"10 of {len(DATA)} bytes"):
            await store.uploads.commit(REPOSITORY, session, Digest.of(DATA))

    with_store(tmp_path, work)


def test_an_idle_session_has_no_open_file(tmp_path: Path) -> None:
    """Between requests, after good and failed ones, a session costs no descriptor."""

    async def work(store: LocalStore) -> None:
        session = await store.uploads.start(REPOSITORY, "sha256")
        await store.uploads.append(REPOSITORY, session, 0, body(DATA))
        before = len(os.listdir("/proc/self/fd"))
        others = [await store.uploads.start(REPOSITORY, "sha256") for _ in range(5)]
        for other in others:
            await store.uploads.append(REPOSITORY, other, 0, body(b"x"))
        with file_size_limit(1000), pytest.raises(StorageFull):
            await store.uploads.append(REPOSITORY, others[0], 1, body(DATA))
        assert len(os.listdir("/proc/self/fd")) == before

    with_store(tmp_path, work)

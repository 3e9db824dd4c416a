"""The ceiling on bulk writes: who waits, and for how long."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.local import LocalStore, StoreSettings
from sluice.store.pace import BURST_BYTES, DIRTY_BYTES_MAX, FLUSH_BYTES, Pacer, await_writeback

REPOSITORY = Repository("paced")
RATE = BURST_BYTES  # one second fills the bucket


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_is_free_and_what_follows_is_paid_for() -> None:
    """A rested bucket gives ``BURST_BYTES`` at once; then every byte costs its share of a second, in turn."""
    pacer = Pacer(RATE, Clock())
    assert [pacer.take(BURST_BYTES), pacer.take(RATE // 2), pacer.take(RATE // 2)] == [0.0, 0.5, 1.0]


def test_a_rest_fills_the_bucket_and_no_more() -> None:
    """However long nobody writes, one burst is free."""
    clock = Clock()
    pacer = Pacer(RATE, clock)
    pacer.take(3 * BURST_BYTES)
    clock.now_s = 2.5
    assert pacer.take(BURST_BYTES) == 0.5
    clock.now_s = 1000.0
    assert [pacer.take(BURST_BYTES), pacer.take(RATE)] == [0.0, 1.0]


def test_over_a_long_time_the_ceiling_holds() -> None:
    """Whoever waits as told writes the ceiling and one burst, whatever the pieces."""
    clock = Clock()
    pacer = Pacer(RATE, clock)
    written = 0
    while clock.now_s < 20:
        for piece in (1, 300_000, FLUSH_BYTES):
            clock.now_s += pacer.take(piece)
            written += piece
    assert written <= 20 * RATE + BURST_BYTES + 2 * FLUSH_BYTES
    assert written >= 20 * RATE


def test_no_ceiling_means_no_wait() -> None:
    """0 turns it off."""
    assert Pacer(0, Clock()).take(1 << 60) == 0.0


@pytest.mark.parametrize(
    ("writers", "expected"),
    [(0, DIRTY_BYTES_MAX), (1, DIRTY_BYTES_MAX), (4, DIRTY_BYTES_MAX // 4), (1000, FLUSH_BYTES)],
)
def test_writers_share_what_may_wait_for_the_disk(writers: int, expected: int) -> None:
    """The more write at once, the less each may be ahead of the disk."""
    pacer = Pacer(RATE)
    for _ in range(writers):
        pacer.enter()
    assert pacer.dirty_bytes == expected
    for _ in range(writers):
        pacer.leave()
    assert pacer.dirty_bytes == DIRTY_BYTES_MAX


def test_waiting_for_the_disk_works_on_files_only(tmp_path: Path) -> None:
    """On Linux the call works on a file; where it cannot work it says so and raises nothing."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 10_000)
        file.flush()
        assert await_writeback(file.fileno(), 0, 10_000) is True
    reading, writing = os.pipe()
    assert await_writeback(writing, 0, 10) is False
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("pace_pushes", [False, True])
def test_paced_bytes_arrive_whole(tmp_path: Path, pace_pushes: bool) -> None:
    """A spool and a push of several bursts, held to a ceiling, become the content that was sent."""
    pieces = [os.urandom(1 << 20) for _ in range(2 * BURST_BYTES >> 20)]
    digest = Digest.of(b"".join(pieces))

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def work() -> None:
        settings = StoreSettings(reserve_bytes=0, write_bytes_per_s=200 * BURST_BYTES, pace_pushes=pace_pushes)
        store = LocalStore.open(tmp_path / "data", settings)
        try:
            spool = await store.begin_spool(REPOSITORY, "sha256")
            for piece in pieces:
                await spool.write([piece])
            session = await store.uploads.start(REPOSITORY, "sha256")
            await store.uploads.append(REPOSITORY, session, 0, body())
            committed = [await spool.commit(digest), await store.uploads.commit(REPOSITORY, session, digest)]
            assert [one.digest for one in committed] == [digest, digest]
        finally:
            await store.close()

    asyncio.run(work())

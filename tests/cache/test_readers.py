"""What is passed through is hashed beside the event loop, and verified whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading

import pytest

from cache.scripted import APP, Body, Upstream, until
from sluice.cache.answers import CacheCounters
from sluice.cache.readers import ThroughReader
from sluice.errors import UpstreamInvalid
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest

PIECE_BYTES = 256 << 10
DATA = os.urandom(4 * PIECE_BYTES)


class WatchedHasher:
    """SHA-256 that writes down in which threads it was updated, and waits for ``gate`` before each update."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self.threads.append(threading.get_ident())
        assert self.gate.wait(20)
        self._hasher.update(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def passage(hasher: WatchedHasher, *script: Body) -> ThroughReader:
    upstream = Upstream()
    digest = upstream.add_blob(DATA, *script)

    async def opener(offset: int) -> BlobReader:
        return await upstream.open_blob(APP, digest, offset)

    return ThroughReader([opener], Digest.of(DATA), CacheCounters(), hasher=hasher, position=0)


async def test_large_pieces_are_hashed_beside_the_event_loop() -> None:
    """While one is hashed the next one comes; small ones are not worth a thread."""
    hasher = WatchedHasher()
    reader = passage(hasher)
    small = 10_000
    got = [await reader.read(0, small)]
    for offset in range(small, len(DATA), PIECE_BYTES):
        got.append(await reader.read(offset, min(PIECE_BYTES, len(DATA) - offset)))
    assert b"".join(got) == DATA
    mine = threading.get_ident()
    assert hasher.threads[0] == mine
    assert len(hasher.threads) > 3
    assert mine not in hasher.threads[1:-1]
    reader.close()


async def test_the_loop_goes_on_while_a_piece_is_hashed() -> None:
    """Nobody waits for a hasher but who reads on."""
    hasher = WatchedHasher()
    reader = passage(hasher)
    hasher.gate.clear()
    assert await reader.read(0, PIECE_BYTES) == DATA[:PIECE_BYTES]
    second = asyncio.create_task(reader.read(PIECE_BYTES, PIECE_BYTES))
    await until(lambda: len(hasher.threads) == 1)
    await asyncio.sleep(0.05)
    assert not second.done()
    hasher.gate.set()
    assert await second == DATA[PIECE_BYTES : 2 * PIECE_BYTES]
    reader.close()


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("sized", [False, True])
async def test_whoever_was_cancelled_gets_nothing_unverified(sized: bool, wrong: bool) -> None:
    """A read that is given up while the last piece is hashed leaves everything in its place: the next one gets the last
    bytes where they are right, and none of them where they are wrong."""
    hasher = WatchedHasher()
    reader = passage(hasher, Body(sized=sized, flip_at=5 if wrong else None))
    hasher.gate.clear()
    reading = asyncio.create_task(reader.read(0, len(DATA)))
    await until(lambda: hasher.threads)
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()
    hasher.gate.set()
    if wrong:
        with pytest.raises(UpstreamInvalid):
            await reader.read(0, len(DATA))
    else:
        assert await reader.read(0, len(DATA)) == DATA
    reader.close()

"""In what pieces a fill takes bytes from its upstream and hands them to the store.

Small ones while they come slowly, for readers see whole chunks; larger ones while they come fast, for each costs a hop
to another thread; smaller ones again where many fills share what they may hold in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sluice.oci.content import BlobReader

CHUNK_BYTES_MIN = 16 << 10
CHUNK_BYTES_MAX = 1 << 20
SHARE_BYTES_MIN = 64 << 10
WHOLE_SHARE_BYTES = 256 << 10  # from this share on there is room for pieces as they come, uncut
CHUNKS_BYTES = 1 << 20  # of all fills together, as long as they are few
FAST_CHUNK_S, SLOW_CHUNK_S = 0.02, 0.2  # readers see whole chunks: larger ones only while they come fast
PATIENCE_S = 0.01  # what came is shown by then, however little it is
BATCH_PIECES_MAX = 256
PIECE_BYTES_MAX = 512 << 10


@runtime_checkable
class Flowing(Protocol):
    """A reader that hands out bytes as they come, uncopied."""

    async def read_next(self, limit: int) -> bytes:
        """The next bytes, up to ``limit``; empty at the end."""


async def next_batch(
    reader: BlobReader, position: int, want: int, patience_s: float, *, share: int
) -> tuple[Sequence[bytes], bool]:
    """About ``want`` bytes from ``position``, where ``reader`` stands, and whether the blob ends behind them: fewer
    where more takes longer than ``patience_s``, and with a ``share`` (``share_bytes``) that has room for it up to a
    piece more, which is not cut then."""
    if not isinstance(reader, Flowing):
        data = await reader.read(position, want)
        return ([data] if data else []), len(data) < want
    now = asyncio.get_running_loop().time
    until = now() + patience_s
    batch: list[bytes] = []
    held = 0
    while held < want and len(batch) < BATCH_PIECES_MAX:
        piece = await reader.read_next(PIECE_BYTES_MAX if share >= WHOLE_SHARE_BYTES else want - held)
        if not piece:
            return batch, True
        batch.append(piece)
        held += len(piece)
        if now() >= until:
            break
    return batch, False


def share_bytes(fills: int) -> int:
    """How large a chunk of one of so many fills may be."""
    return max(SHARE_BYTES_MIN, min(CHUNK_BYTES_MAX, CHUNKS_BYTES // max(fills, 1)))


def next_chunk_bytes(chunk: int, took_s: float) -> int:
    """How large the chunk after one that took so long may be."""
    if took_s > SLOW_CHUNK_S:
        return CHUNK_BYTES_MIN
    return min(chunk * 2, CHUNK_BYTES_MAX) if took_s < FAST_CHUNK_S else max(chunk // 2, CHUNK_BYTES_MIN)

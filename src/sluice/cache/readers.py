"""What those who asked for a blob read from: a fill, or the upstream itself.

``FillReader`` reads what a fill brings, and goes on straight from the upstream where the fill cannot serve it: the
store has no room, or it is far behind. ``ThroughReader`` reads from the upstream and keeps nothing; where it has seen
every byte it withholds the last ``WITHHELD_BYTES`` until the digest is verified, as a fill does.
"""

from __future__ import annotations

from collections.abc import Sequence

from sluice.cache.answers import CacheCounters
from sluice.cache.chunks import CHUNK_BYTES_MIN
from sluice.cache.fill import WITHHELD_BYTES, Fill
from sluice.cache.sources import Opener, open_first
from sluice.errors import SluiceError, StoreDamaged, UpstreamFailed, UpstreamInvalid
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest, Hasher
from sluice.wire.pieces import Pieces


class FillReader:
    """A ``BlobReader`` over a fill whose head is there. Whoever makes it has attached it to the fill."""

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._size = fill.size
        self._through: ThroughReader | None = None
        self._closed = False

    @property
    def size(self) -> int | None:
        """Whole length in bytes, as it was known when this reader was made."""
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        """Wait for the bytes and return exactly ``length`` of them, fewer only at the end of a blob whose size was not
        known. Raises how the fill failed."""
        _check_open(self._closed, self._fill.digest)
        _check_end(self._size, offset, length, self._fill.digest)
        if self._through is None and self._fill.is_far(offset):
            self._divert(None, offset)
        if self._through is None:
            try:
                return await self._fill.read(offset, await self._fill.wait(offset, length))
            except SluiceError:
                if not self._fill.refused:
                    raise
            self._divert(await self._fill.hasher_at(offset), offset)
        assert self._through is not None
        return await self._through.read(offset, length)

    def close(self) -> None:
        """Leave the fill, which goes on; idempotent."""
        if not self._closed:
            self._closed = True
            self._fill.detach()
            if self._through is not None:
                self._through.close()

    def _divert(self, seed: Hasher | None, offset: int) -> None:
        """Go on straight from the upstream, verified where ``seed`` has seen what comes before ``offset``."""
        fill = self._fill
        fill.counters.diverted += 1
        self._through = ThroughReader(fill.openers, fill.digest, fill.counters, hasher=seed, position=offset)


class ThroughReader:
    """A ``BlobReader`` that goes to the upstream for every byte, best read from front to back.

    ``hasher`` has seen what comes before ``position``. A reader that leaps gives up the verification: what it has is a
    part, and whoever puts parts together verifies them. In memory are what was asked for and ``WITHHELD_BYTES``.
    """

    def __init__(
        self,
        openers: Sequence[Opener],
        digest: Digest,
        counters: CacheCounters,
        *,
        hasher: Hasher | None,
        position: int,
    ) -> None:
        self._openers = openers
        self._digest = digest
        self._counters = counters
        self._size: int | None = None
        self._hasher = hasher
        self._position = position  # of the first byte in ``_ahead``
        self._ahead = Pieces()
        self._ended = False
        self._wrong = False
        self._reader: BlobReader | None = None
        self._closed = False

    @property
    def size(self) -> int | None:
        """Whole length in bytes; None where the upstream does not tell."""
        return self._size

    async def open(self, small_blob_bytes: int) -> None:
        """Ask the upstream; raises what it answers. A blob of up to ``small_blob_bytes`` is verified by this."""
        self._reader = await open_first(self._openers, self._position)
        self._size = self._reader.size
        if self._hasher is not None and self._position == 0 and (self._size or 0) <= small_blob_bytes:
            await self._gather(small_blob_bytes + 1 if self._size is None else self._size)
            if self._ended:
                self._size = len(self._ahead)

    async def read(self, offset: int, length: int) -> bytes:
        """As ``FillReader.read``; raises UpstreamInvalid instead of the last bytes of a wrong blob."""
        _check_open(self._closed, self._digest)
        _check_end(self._size, offset, length, self._digest)
        if length <= 0:
            return b""
        if offset != self._position:
            self._leap(offset)
        await self._gather(length)
        data = self._ahead.take(length)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Hang up; idempotent."""
        self._closed = True
        self._drop_reader()

    def _leap(self, offset: int) -> None:
        self._drop_reader()
        self._hasher = None
        self._ahead.clear()
        self._position, self._ended = offset, False

    def _drop_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def _gather(self, length: int) -> None:
        """Bring ``length`` bytes into ``_ahead``, and as many more as must be withheld behind them."""
        if self._reader is None:
            self._reader = await open_first(self._openers, self._position + len(self._ahead))
        end = self._reader.size
        while not self._ended and len(self._ahead) < self._wanted(length, end):
            at = self._position + len(self._ahead)
            want = max(length - len(self._ahead), CHUNK_BYTES_MIN)
            want = want if end is None else min(want, end - at)
            data = await self._reader.read(at, want)
            self._counters.upstream_bytes += len(data)
            self._ahead.append(data)
            if self._hasher is not None:
                self._hasher.update(data)
            if end is not None and len(data) < want:
                raise UpstreamFailed(f"blob {self._digest} ended at byte {at + len(data)} of {end}")
            if len(data) < want or at + len(data) == end:
                self._finish()
        if self._wrong or (end == 0 and not self._ended):
            self._finish()

    def _wanted(self, length: int, end: int | None) -> int:
        """How many bytes must be there before ``length`` may go out."""
        if self._hasher is None:
            return length
        if end is None:
            return length + WITHHELD_BYTES
        withheld = self._position + length > end - WITHHELD_BYTES
        return end - self._position if withheld else length

    def _finish(self) -> None:
        self._ended = True
        if self._hasher is not None and self._hasher.hexdigest() != self._digest.hex:
            self._wrong = True
            self._ahead.clear()
            raise UpstreamInvalid(f"the upstream sent other bytes than those of blob {self._digest}")


def _check_open(closed: bool, digest: Digest) -> None:
    if closed:
        raise StoreDamaged(f"blob {digest} was read after it was closed")


def _check_end(size: int | None, offset: int, length: int, digest: Digest) -> None:
    if size is not None and offset + length > size:
        raise StoreDamaged(f"blob {digest} has {size} bytes: none can be read up to byte {offset + length}")

"""A fill's bytes on their way into the store: one batch is written while the next one comes from the upstream.

So two batches are in memory for each fill, never more. The store's refusal is kept apart from the upstream's failures:
``refusal`` says that the one who raised was the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from sluice.errors import SluiceError
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.blobs import LocalBlob
from sluice.store.writer import LocalBlobWriter


class Spool:
    """An upload session that is read while it grows. ``taken`` bytes were handed in, ``written`` can be read.

    ``tail`` reads them, from the first byte on; whoever made the spool closes it. ``moved`` is called after each write.
    """

    def __init__(self, writer: LocalBlobWriter, moved: Callable[[], None]) -> None:
        self._writer = writer
        self._moved = moved
        self._writing: asyncio.Task[None] | None = None
        self.taken = 0
        self.written = 0
        self.tail: LocalBlob | None = None
        self.refusal: SluiceError | None = None

    async def append(self, batch: Sequence[bytes], size: int) -> None:
        """Take ``batch`` of ``size`` bytes once what came before is written; raises what the store raised on that."""
        await self.settle()
        self.taken += size
        self._writing = asyncio.create_task(self._write(batch), name="write spool")

    async def settle(self) -> None:
        """Wait until all that was taken is written; raises what the store raised."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.result()
            self._writing = None

    async def verify(self, digest: Digest) -> None:
        """Raises DigestInvalid where other bytes came, or the store's refusal."""
        await self.settle()
        try:
            await self._writer.verify(digest)
        except SluiceError as error:
            self.refusal = error
            raise

    async def commit(self, digest: Digest, also: Sequence[Repository], *, replace: bool) -> None:
        """Verify, make durable, publish; raises DigestInvalid, or the store's refusal."""
        await self.settle()
        try:
            await self._writer.commit_in(digest, also, replace=replace)
        except SluiceError as error:
            self.refusal = error
            raise

    async def drop(self) -> None:
        """Leave nothing behind, whatever is under way; what was committed stays."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            self._writing.exception()  # told by ``refusal``
        with contextlib.suppress(SluiceError):
            await self._writer.abort()

    async def _write(self, batch: Sequence[bytes]) -> None:
        try:
            await self._writer.write(batch)
            if self.tail is None:
                self.tail = await self._writer.tail()
        except SluiceError as error:
            self.refusal = error
            raise
        self.written = self.taken
        self._moved()

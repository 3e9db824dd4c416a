"""A fill's bytes on their way into the store: one batch is written while the next one comes from the upstream.

So two batches are in memory for each fill, never more. The store's refusal is kept apart from the upstream's failures:
``refusal`` says that the one who raised was the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from sluice.cache.space import Grant, Space
from sluice.errors import SluiceError
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.blobs import LocalBlob
from sluice.store.local import LocalStore
from sluice.store.writer import LocalBlobWriter


async def open_spool(
    store: LocalStore,
    space: Space | None,
    repository: Repository,
    digest: Digest,
    size: int | None,
    moved: Callable[[], None],
) -> Spool:
    """A spool for a blob of ``size`` bytes, let in by ``space``; raises StorageFull or TooManyUploads."""
    grant = None if space is None else await space.admit(size, digest)
    try:
        return Spool(await store.begin_spool(repository, digest.algorithm), moved, grant)
    except BaseException:
        if grant is not None:
            grant.release()
        raise


class Spool:
    """An upload session that is read while it grows. ``taken`` bytes were handed in, ``written`` can be read.

    ``tail`` reads them, from the first byte on; whoever made the spool closes it. ``moved`` is called after each write.
    ``grant`` is the room that it has.
    """

    def __init__(self, writer: LocalBlobWriter, moved: Callable[[], None], grant: Grant | None = None) -> None:
        self._grant = grant
        self._writer = writer
        self._moved = moved
        self._writing: asyncio.Task[None] | None = None
        self.taken = 0
        self.written = 0
        self.tail: LocalBlob | None = None
        self.refusal: SluiceError | None = None

    async def append(self, batch: Sequence[bytes], size: int) -> None:
        """Take ``batch`` of ``size`` bytes once what came before is written; raises what the store raised about that,
        and StorageFull where there is no room for it."""
        await self.settle()
        if self._grant is not None:
            try:
                await self._grant.reach(self.taken + size)
            except SluiceError as error:
                self.refusal = error
                raise
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
        if self._grant is not None:
            self._grant.entering = not replace  # else there is a row, and the file that it is about counts too
        try:
            await self._writer.commit_in(digest, also, replace=replace)
        except SluiceError as error:
            self.refusal = error
            raise

    async def end(self, *, kept: bool) -> None:
        """``drop`` it unless it was committed, and give its room back."""
        try:
            if not kept:
                await self.drop()
        finally:
            if self._grant is not None:
                self._grant.release()

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

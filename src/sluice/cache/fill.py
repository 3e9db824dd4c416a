"""The fill: one blob on its way from the upstream into the store, whoever waits for it.

``Fills`` (``cache.fills``) has one ``Fill`` for each digest. A fill is a task of the application. It appends to an
upload session of the store while hashing, goes on at its offset when an upstream breaks off, and ends in a commit, or
in nothing at all. Readers (``cache.readers``) attach at any offset, read from the session's file at their own speed,
and may all leave: the fill goes on, unless another one that is read needs its slot.

What readers may see: up to the last ``WITHHELD_BYTES`` of the blob as it comes, these when the digest is verified. So
nobody ever holds a complete blob that is not what its digest says. Of a blob of up to ``small_blob_bytes`` not even the
head is shown before. That the content is durable, which takes the disk longer, is no reader's concern.

Where the store has no room, the fill ends (``refused``), and its readers go on straight from the upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from sluice.cache.answers import CacheCounters
from sluice.cache.chunks import CHUNK_BYTES_MIN, PATIENCE_S, next_batch, next_chunk_bytes, share_bytes
from sluice.cache.flights import again, patiently
from sluice.cache.policy import CachePolicy, is_far
from sluice.cache.sources import Opener, pause_s
from sluice.cache.spool import Spool, open_spool
from sluice.errors import (
    BlobUnknown,
    DigestInvalid,
    NameUnknown,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
)
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest, Hasher
from sluice.oci.reference import Repository

if TYPE_CHECKING:
    from sluice.cache.fills import Fills

WITHHELD_BYTES = 64 << 10
REHASH_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Fill:
    """One blob on its way in. ``size`` is None until the upstream has told, and for ever where it does not.

    ``verified``: all bytes are here and are those of the digest; ``complete``: they are the store's, for good.
    ``error`` says how it failed; ``refused``: it was the store, not the upstream; ``gave_way``: nobody read it, and
    another one took its slot. ``queued``: it waits for one. ``lane``: whose slots it takes. ``task`` is its own.
    """

    def __init__(
        self,
        digest: Digest,
        repository: Repository,
        openers: Sequence[Opener],
        fills: Fills,
        *,
        replace: bool,
        lane: Hashable = None,
    ) -> None:
        self.digest = digest
        self.lane = lane
        self.task: asyncio.Task[None] | None = None
        self.queued = True
        self.gave_way = False
        self.repositories = [repository]
        self.openers = tuple(openers)
        self.size: int | None = None
        self.verified = False
        self.complete = False
        self.error: SluiceError | None = None
        self.refused = False
        self._fills = fills
        self._replace = replace
        self._spool: Spool | None = None
        self._begun = False
        self._moved = asyncio.Event()
        self._readers = 0
        self._ended = False
        self._leases = [fills.store.leases.take(repository, digest)]  # until it has ended and nobody reads it

    @property
    def policy(self) -> CachePolicy:
        """The policy that holds now."""
        return self._fills.policy

    @property
    def counters(self) -> CacheCounters:
        """Where everything is counted."""
        return self._fills.counters

    @property
    def position(self) -> int:
        """Bytes that have come."""
        return 0 if self._spool is None else self._spool.written

    @property
    def wanted(self) -> bool:
        """Whether somebody reads it."""
        return self._readers > 0

    @property
    def parting(self) -> bool:
        """Whether it has failed, or all its bytes are here: it ends by itself."""
        return self.verified or self.error is not None

    @property
    def readable(self) -> int:
        """Bytes from the start that readers may have now."""
        if self.verified:
            return self.position
        end = self.position if self.size is None else self.size  # it may end at any byte
        return max(0, min(self.position, end - WITHHELD_BYTES))

    def is_far(self, offset: int) -> bool:
        """Whether a reader at ``offset`` would wait too long."""
        return not self.verified and is_far(offset, self.position, self.policy)

    def join(self, repository: Repository) -> None:
        """Make the blob readable in this repository too, once it is there."""
        if repository not in self.repositories:
            self.repositories.append(repository)
            self._leases.append(self._fills.store.leases.take(repository, self.digest))

    async def turn(self) -> bool:
        """Wait up to ``queue_s`` seconds for its slot; False where it is queued still. Raises how the fill failed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.policy.queue_s):
                while self.queued:
                    self._check()
                    await self._moved.wait()
        return not self.queued

    async def head(self) -> None:
        """Wait until there is a head to show; raises how the fill failed, or UpstreamTimeout while it goes on."""
        await patiently(self._head, self.policy.head_deadline_s)

    async def wait(self, offset: int, length: int) -> int:
        """Wait until ``length`` bytes from ``offset`` can be read, or the blob's end is there; returns how many can.
        Raises how the fill failed."""
        while not self.verified and offset + length > self.readable:
            self._check()
            await self._moved.wait()
        if not self.verified:
            self._check()
        return max(0, min(length, self.readable - offset))

    async def read(self, offset: int, length: int) -> bytes:
        """Read what ``wait`` said can be read."""
        if length <= 0:
            return b""
        assert self._spool is not None
        assert self._spool.tail is not None
        return await self._spool.tail.read(offset, length)

    async def hasher_at(self, offset: int) -> Hasher | None:
        """A hasher that has seen the blob up to ``offset``; None where these bytes are not here."""
        hasher = self.digest.hasher()
        if offset > self.position:
            return None
        for start in range(0, offset, REHASH_BYTES):
            data = await self.read(start, min(REHASH_BYTES, offset - start))
            await asyncio.to_thread(hasher.update, data)
        return hasher

    def attach(self) -> None:
        """One more reader needs the bytes."""
        self._readers += 1
        if self._readers == 1:
            self._fills.slots.settle()

    def detach(self) -> None:
        """One reader less."""
        self._readers -= 1
        self._release()
        if self._readers == 0:
            self._fills.slots.settle()

    def give_way(self) -> None:
        """End, for a fill that somebody reads: nobody reads this one. Who asks for the blob now gets another fill."""
        assert self.task is not None
        self.gave_way = True
        self._fail(Unavailable(f"blob {self.digest} is no longer being fetched: nobody read it, and others wait"))
        self.task.cancel()

    async def run(self) -> None:
        """Do it all. Raises nothing that is not a bug, but CancelledError; leaves nothing behind where it fails."""
        self._notify()  # whoever waits for its turn
        try:
            await self._copy()
            await self._commit()
        except SluiceError as error:
            self._fail(error)
        finally:
            if self._spool is not None:
                await self._spool.end(kept=self.complete)

    def end(self) -> None:
        """Nothing more happens: who waits is told, and the file is closed once nobody reads it."""
        if not self.complete and self.error is None:
            self._fail(Unavailable(f"blob {self.digest} is no longer being fetched: the server is stopping"))
        self._ended = True
        self._release()

    async def _head(self) -> None:
        small = self.policy.small_blob_bytes
        while not self.verified and not (self._begun and (self.size or 0) > small) and self.position <= small:
            self._check()
            await self._moved.wait()
        if not self.verified:
            self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise again(self.error)

    async def _copy(self) -> None:
        """Bring all bytes into the spool, from whichever upstream has them."""
        line = list(self.openers)
        failures = 0  # in a row, without a byte in between
        first: UpstreamError | None = None
        while True:
            before = self.position if self._spool is None else self._spool.taken
            try:
                await self._copy_from(line[0], primary=line[0] is self.openers[0])
            except UpstreamError as error:
                if self._spool is not None and self._spool.taken > before:
                    failures, first = 0, None
                failures += 1
                first = first or error
                # The next mirror; one that will not do better is not asked again.
                line = line[1:] + (line[:1] if error.temporary else [])
                tries = self.policy.fill_tries * len(line) if self._begun else len(self.openers)
                if not line or failures >= tries:
                    raise first from error
                _log.info("blob %s stands at byte %d and goes on: %s", self.digest, self.position, error.message)
                if self._begun and failures % len(line) == 0:
                    await asyncio.sleep(pause_s(failures // len(line), self.policy))
            else:
                return

    async def _copy_from(self, opener: Opener, *, primary: bool) -> None:
        taken = 0 if self._spool is None else self._spool.taken
        try:
            reader = await opener(taken)
        except (BlobUnknown, NameUnknown) as error:
            if primary and not self._begun:
                raise
            # A mirror that lacks it says nothing about the blob, and nor does one that loses it half-way.
            raise UpstreamFailed(f"the upstream has blob {self.digest} no longer: {error.message}") from None
        try:
            await self._take_head(reader.size)
            if taken:
                self.counters.resumes += 1
            await self._pump(reader)
        finally:
            reader.close()

    async def _take_head(self, size: int | None) -> None:
        if self._begun and None not in (size, self.size) and size != self.size:
            raise UpstreamInvalid(f"blob {self.digest} has {self.size} bytes at one upstream and {size} at another")
        if self._spool is None:
            where, fills = self.repositories[0], self._fills
            try:
                self._spool = await open_spool(fills.store, fills.space, where, self.digest, size, self._notify)
            except SluiceError:
                self.refused = True
                raise
        if not self._begun:
            self.size = size
            self._begun = True
            self._notify()

    async def _pump(self, reader: BlobReader) -> None:
        """Append until the end; raises UpstreamError where the upstream breaks off, with all it brought written."""
        assert self._spool is not None
        end = self.size if reader.size is None else reader.size
        chunk, now = CHUNK_BYTES_MIN, asyncio.get_running_loop().time
        try:
            while end is None or self._spool.taken < end:
                most = share_bytes(self.counters.fills_active)
                want = min(chunk, most) if end is None else min(chunk, most, end - self._spool.taken)
                asked_at = now()
                batch, ended = await next_batch(reader, self._spool.taken, want, PATIENCE_S, share=most)
                size = sum(map(len, batch))
                self.counters.upstream_bytes += size
                if batch:
                    await self._spool.append(batch, size)
                if ended:
                    break
                chunk = next_chunk_bytes(chunk, now() - asked_at)
        finally:
            await self._spool.settle()
        if end is not None and self._spool.taken < end:
            raise UpstreamFailed(f"blob {self.digest} ended at byte {self._spool.taken} of {end}")

    async def _commit(self) -> None:
        assert self._spool is not None
        try:
            await self._spool.verify(self.digest)
        except DigestInvalid as error:
            self.counters.invalid += 1
            raise UpstreamInvalid(f"the upstream sent other bytes than those of blob {self.digest}") from error
        self.size = self._spool.taken
        self.verified = True
        self._notify()
        linked = tuple(self.repositories)
        await self._spool.commit(self.digest, linked[1:], replace=self._replace)
        self.complete = True
        self._notify()
        for repository in self.repositories[len(linked) :]:  # who joined during the commit
            with contextlib.suppress(SluiceError):  # the next request of theirs does it
                await self._fills.store.link(repository, self.digest)

    def _fail(self, error: SluiceError) -> None:
        if self.complete:
            return
        self.refused = self.refused or (self._spool is not None and self._spool.refusal is error)
        self.error = error
        self._notify()

    def _notify(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _release(self) -> None:
        if not self._ended or self._readers:
            return
        if self._spool is not None and self._spool.tail is not None:
            self._spool.tail.close()
        for lease in self._leases:
            self._fills.store.leases.drop(lease)

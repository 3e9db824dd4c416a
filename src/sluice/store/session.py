"""One upload session's bytes on the disk: the blocking half of ``store.uploads``.

A ``SessionFile`` is used by one worker thread at a time, in the order in which the jobs were handed out. Written bytes
are hashed by another thread while the next ones are received and written. ``offset`` counts bytes that are in the file
and nothing else: after an error it is still the truth. The disk takes them in small flushes (``store.pace``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from pathlib import Path

from sluice.errors import StorageFull, UploadInvalid
from sluice.oci.digest import HEX_LENGTH, Digest, Hasher
from sluice.oci.reference import Repository
from sluice.store.pace import FLUSH_BYTES, Pacer, await_writeback, drop_cache, start_writeback
from sluice.store.paths import FILE_MODE
from sluice.store.reserve import Reserve, refused
from sluice.store.threads import submit

REHASH_CHUNK_BYTES = 1 << 20
HASH_BESIDE_BYTES = 64 << 10  # hashing as much takes longer than waking a thread for it
NOTE_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Note:
    """What a session is for: the content of ``<id>.json``. ``started_at`` in seconds since the epoch."""

    repository: Repository
    algorithm: str
    started_at: float

    def save(self, path: Path) -> None:
        """Write it, without fsync: a session that a power cut takes is started again by its client. Raises StorageFull
        or Unavailable."""
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w") as file:
                json.dump(asdict(self), file)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise refused(error, "an upload session") from error

    @classmethod
    def load(cls, path: Path) -> Note | None:
        """Read it back; None where the file is missing or was cut short by a crash."""
        try:
            value = json.loads(path.read_bytes())
            note = cls(Repository(str(value["repository"])), str(value["algorithm"]), float(value["started_at"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return note if note.algorithm in HEX_LENGTH else None


class SessionFile:
    """The growing file at ``path``; it exists from the first byte on."""

    def __init__(
        self, path: Path, algorithm: str, reserve: Reserve, pacer: Pacer, hashers: Executor | None = None
    ) -> None:
        """``hashers``: threads that hash; None hashes where it is written."""
        self.path = path
        self._algorithm = algorithm
        self._reserve = reserve
        self._pacer = pacer
        self._descriptor = -1
        self._flushing = threading.Lock()
        self._lost = False  # the disk failed to take bytes, and no fsync will say so again
        try:
            self.offset = path.stat().st_size
        except FileNotFoundError:
            self.offset = 0
        self._handed_over = self._on_disk = self.offset  # bytes whose write-back was started, and has ended
        # Bytes from before a restart went through a hasher that is gone: the file is read again at the commit.
        self._hasher: Hasher | None = hashlib.new(algorithm) if self.offset == 0 else None
        self._hashers = hashers
        self._hashing: Future[None] | None = None

    @property
    def unflushed(self) -> int:
        """Bytes that the disk was not asked to take."""
        return self.offset - self._handed_over

    def write(self, batch: Sequence[bytes], *, flush: bool = True) -> int:
        """Append ``batch`` and return the new offset; all of it or, with StorageFull or Unavailable, nothing of it.
        Without ``flush``, somebody calls that."""
        size = sum(map(len, batch))
        if size == 0:
            return self.offset
        try:
            self._check_lost()
            self._reserve.check()
            self._write(batch, size)
            if flush and self.unflushed + size >= FLUSH_BYTES:
                self._flush(self.offset + size)
        except OSError as error:
            self._cut()
            self.close()
            raise refused(error, "an upload") from error
        except (StorageFull, UploadInvalid):
            self.close()
            raise
        self.offset += size
        self._hash(batch, size)
        return self.offset

    def write_last(self, batch: Sequence[bytes]) -> int:
        """``write``, and close: the request ends."""
        try:
            return self.write(batch)
        finally:
            self.close()

    def flush(self, count: int) -> bool:
        """Have the disk take ``count`` bytes more; raises as ``write``. May run beside anything else, once at a time.
        False where the file is closed."""
        with self._flushing:
            if self._descriptor < 0:
                return False
            try:
                self._flush(self._handed_over + count)
            except OSError as error:
                raise refused(error, "an upload") from error
        return True

    def digest(self, algorithm: str) -> Digest:
        """The digest of all bytes, of which the file then holds exactly ``offset``.

        Reads the file again where they were not hashed with ``algorithm`` on their way. Raises UploadInvalid where the
        file has lost bytes, or Unavailable.
        """
        try:
            self._check_lost()
            self._trim()
            self._await_hashing()
            if self._hasher is not None and algorithm == self._algorithm:
                return Digest(algorithm, self._hasher.hexdigest())
            return Digest(algorithm, self._rehash(algorithm))
        except OSError as error:
            raise refused(error, "an upload") from error

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        with self._flushing:  # the descriptor's number may soon be another file's
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
                self._pacer.leave()

    def drop(self) -> None:
        """Remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> int:
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, FILE_MODE)
            self._pacer.enter()
        return self._descriptor

    def _write(self, batch: Sequence[bytes], size: int) -> None:
        descriptor = self._open()
        written = os.pwritev(descriptor, batch, self.offset)
        if written == size:
            return
        # A signal or a nearly full disk cuts a write short; the rest says which.
        rest = memoryview(b"".join(batch))
        while written < size:
            written += os.pwrite(descriptor, rest[written:], self.offset + written)

    def _hash(self, batch: Sequence[bytes], size: int) -> None:
        """Take ``batch`` into the digest; what is small is not worth another thread."""
        self._await_hashing()
        if self._hasher is None:
            return
        if self._hashers is None or size < HASH_BESIDE_BYTES:
            _update(self._hasher, batch)
        else:
            self._hashing = submit(self._hashers, _update, self._hasher, batch)

    def _await_hashing(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def _cut(self) -> None:
        """Take back what a failed write left behind ``offset``. Where even that fails, the next write covers it or the
        commit trims it; after a restart it counts as received, for it is the beginning of the client's next bytes."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.offset)

    def _trim(self) -> None:
        actual = os.fstat(self._open()).st_size
        if actual < self.offset:
            raise UploadInvalid(f"the upload's file has {actual} of {self.offset} bytes left: start a new upload")
        if actual > self.offset:
            os.ftruncate(self._descriptor, self.offset)

    def _flush(self, end: int) -> None:
        """Have the disk take what is written up to ``end``, and wait for it where too much is on its way."""
        try:
            start_writeback(self._descriptor, self._handed_over, end - self._handed_over)
            self._handed_over = end
            late = end - self._pacer.dirty_bytes
            if late > self._on_disk:
                await_writeback(self._descriptor, self._on_disk, late - self._on_disk)
                self._on_disk = late
        except OSError:
            self._lost = True
            raise

    def _check_lost(self) -> None:
        if self._lost:
            raise UploadInvalid("the disk has lost bytes of this upload: start a new one")

    def _rehash(self, algorithm: str) -> str:
        hasher = hashlib.new(algorithm)
        descriptor = self._open()
        buffer = bytearray(REHASH_CHUNK_BYTES)
        position = 0
        while count := os.preadv(descriptor, [buffer], position):
            hasher.update(memoryview(buffer)[:count])
            position += count
        drop_cache(descriptor, 0, position)
        return hasher.hexdigest()


def _update(hasher: Hasher, batch: Sequence[bytes]) -> None:
    for chunk in batch:
        hasher.update(chunk)

"""Content-addressed files: how bytes become content, and how content is read.

``Contents.publish`` is the only way in: bytes that are verified and complete in a file of ``uploads/`` are fsynced,
renamed to their digest's name, the directory is fsynced, and then the index is told; only after that does anybody hear
of it. Cut off at any point, that leaves what was there before, and at most a file that no row names, which the next
start drops (``store.placing``).

``content_lock`` keeps one digest's file and row in step between threads: it is held here from rename to commit, and by
whoever unlinks content.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TypeVar

from sluice.errors import StoreDamaged
from sluice.oci.digest import Digest
from sluice.store.index import Index
from sluice.store.paths import FILE_MODE, Paths, fsync_directory
from sluice.store.placing import placing
from sluice.store.queries import content_size
from sluice.store.reserve import refused
from sluice.store.threads import submit

T = TypeVar("T")

LOCK_STRIPES = 1024
NEAR_BYTES = 1 << 20
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)  # Linux 4.14; without it every read goes to a thread

_log = logging.getLogger(__name__)


class Contents:
    """The content files of one store. Its methods block: call them in worker threads."""

    def __init__(self, paths: Paths, index: Index) -> None:
        self._paths = paths
        self._index = index
        self._locks = tuple(threading.Lock() for _ in range(LOCK_STRIPES))

    @contextlib.contextmanager
    def content_lock(self, digest: Digest) -> Iterator[None]:
        """Nobody else renames, enters or unlinks this content meanwhile.

        Locks are striped: hold one at a time, and never take one inside an index change.
        """
        with self._locks[int(digest.hex[:8], 16) % LOCK_STRIPES]:
            yield

    def publish(
        self,
        staged: Path,
        digest: Digest,
        size: int,
        record: Callable[[sqlite3.Connection], T],
        *,
        replace: bool = False,
    ) -> T:
        """Make the verified file ``staged`` the content of ``digest`` and run ``record``, which enters it, as an index
        change. Durable when it returns. Raises what ``record`` raises, StorageFull or Unavailable; ``staged`` is then
        where it was. ``replace``: also where a file of the right size is there, whose bytes were found to be wrong."""
        try:
            synced = replace or not self.intact(digest, size)
            if synced:  # outside the lock: this is the long part
                _fsync_file(staged)
            with self.content_lock(digest):
                if not replace and self.intact(digest, size):
                    result = self._index.write_blocking(record)
                    staged.unlink(missing_ok=True)
                    return result
                if not synced:
                    _fsync_file(staged)
                return self._place(staged, digest, record)
        except OSError as error:
            raise refused(error, f"content {digest}") from error

    def intact(self, digest: Digest, size: int) -> bool:
        """Whether the content has a row, and a file of ``size`` bytes."""
        if self._index.read(lambda connection: content_size(connection, digest)) is None:
            return False
        return self.has_file(digest, size)

    def has_file(self, digest: Digest, size: int) -> bool:
        """Whether the content's file is there with ``size`` bytes."""
        try:
            return self._paths.content(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def open(
        self, digest: Digest, size: int, readers: Executor, on_release: Callable[[], object] | None = None
    ) -> LocalBlob:
        """Open held content; raises StoreDamaged where the file is missing or not of ``size`` bytes. ``on_release`` is
        called when it has been closed, and not where it could not be opened."""
        path = self._paths.content(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise _damaged(digest, "its file is missing") from None
        actual = os.fstat(descriptor).st_size
        if actual != size:
            os.close(descriptor)
            raise _damaged(digest, f"its file has {actual} bytes, not {size}")
        return LocalBlob(str(digest), descriptor, size, readers, on_release)

    def read(self, digest: Digest, size: int) -> bytes:
        """All of a small content, verified; raises StoreDamaged."""
        try:
            data = self._paths.content(digest).read_bytes()
        except FileNotFoundError:
            raise _damaged(digest, "its file is missing") from None
        if len(data) != size or Digest.of(data, digest.algorithm) != digest:
            raise _damaged(digest, "its bytes are not what they were")
        return data

    def stage(self, name: str, data: bytes) -> Path:
        """Write ``data`` to a new file of ``uploads/``, for ``publish``; raises StorageFull or Unavailable."""
        path = self._paths.uploads / name
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
                file.write(data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise refused(error, "a manifest") from error
        return path

    def _place(self, staged: Path, digest: Digest, record: Callable[[sqlite3.Connection], T]) -> T:
        path = self._paths.content(digest)
        with placing(self._paths, digest):
            staged.rename(path)
            try:
                fsync_directory(path.parent)
                return self._index.write_blocking(record)
            except BaseException:
                # Not content after all. The bytes stay with their upload, so that committing can be tried again.
                with contextlib.suppress(OSError):
                    path.rename(staged)
                raise


class LocalBlob:
    """An open content file (a ``BlobReader``): readable until closed, unlinked or not. ``name`` is for messages.

    Of an upload that still grows, ``size`` is None, and its writer knows how far one may read.
    """

    def __init__(
        self,
        name: str,
        descriptor: int,
        size: int | None,
        readers: Executor,
        on_release: Callable[[], object] | None = None,
    ) -> None:
        self._on_release = on_release
        self._name = name
        self._descriptor = descriptor
        self._size = size
        self._readers = readers
        self._lock = threading.Lock()
        self._near_from = self._near_to = 0  # found in the page cache
        self._reading = 0  # reads that a thread does or will do
        self._closed = False

    @property
    def size(self) -> int | None:
        """Whole length in bytes; None where the file still grows."""
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; raises StoreDamaged where fewer are there.

        What the page cache holds is read at once, since a thread would cost more than the copy; what may have to come
        from the disk is read in a thread, so that the event loop never waits for one.
        """
        if self._closed:
            raise StoreDamaged(f"blob {self._name} was read after it was closed")
        if length <= 0:
            return b""
        if self._is_near(offset, length):
            return self._pread(offset, length)
        with self._lock:
            future = submit(self._readers, self._pread, offset, length)
            self._reading += 1
        future.add_done_callback(self._finished)
        return await asyncio.wrap_future(future)

    def _is_near(self, offset: int, length: int) -> bool:
        """Whether the page cache has the stretch. Where it has both ends of the next ``NEAR_BYTES`` too, the reads that
        follow are not asked about: what lies between is there, or was dropped just now and costs one short wait."""
        if offset >= self._near_from and offset + length <= self._near_to:
            return True
        ahead = length if self._size is None else min(max(length, NEAR_BYTES), self._size - offset)
        if _cached(self._descriptor, offset, ahead):
            self._near_from, self._near_to = offset, offset + ahead
            return offset + length <= self._near_to
        return _cached(self._descriptor, offset, length)

    def close(self) -> None:
        """Release the descriptor; idempotent. A read that was cancelled may still run in its thread: the descriptor
        stays until that ends, for its number could by then belong to another file."""
        with self._lock:
            self._closed = True
            self._release()

    def __del__(self) -> None:
        self.close()

    def _finished(self, _future: Future[bytes]) -> None:
        with self._lock:
            self._reading -= 1
            self._release()

    def _release(self) -> None:
        if self._closed and self._reading == 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._on_release is not None:
                self._on_release()

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    raise _damaged(self._name, f"its file ends at byte {offset + len(data)}")
                data += more
        except OSError as error:
            raise _damaged(self._name, f"reading failed ({error.strerror})") from error
        return data


def _cached(descriptor: int, offset: int, length: int) -> bool:
    """Whether both ends of the stretch are in the page cache: read-ahead fills what lies between."""
    if not _NOWAIT or length <= 0:
        return False
    probe = bytearray(1)
    try:
        for position in (offset, offset + length - 1):
            if os.preadv(descriptor, [probe], position, _NOWAIT) != 1:
                return False
    except OSError:  # EAGAIN: not cached; EOPNOTSUPP: a file system without it
        return False
    return True


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(content: Digest | str, what: str) -> StoreDamaged:
    _log.error("content %s is damaged: %s", content, what)
    return StoreDamaged(f"content {content} is damaged: {what}; run `sluice fsck --repair` and push it again")

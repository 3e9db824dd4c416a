"""Resumable upload sessions of the local store: the asyncio half; ``store.session`` writes the bytes.

A request's body is gathered into batches; while one batch is received, a worker thread writes the one before it and
another hashes the one before that: three batches in memory for each upload, never more, and smaller ones the more
uploads there are. Whatever ends a body, a disconnect included, the bytes that came are written, so that the client
resumes where it really stands.

Jobs of one session form a chain: each waits for the one before it. A job that a cancelled request left behind thereby
still ends before anything else touches the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from sluice.errors import DigestInvalid, TooManyUploads, UploadRangeInvalid, UploadUnknown
from sluice.oci.content import Descriptor
from sluice.oci.digest import HEX_LENGTH, Digest
from sluice.oci.reference import Repository
from sluice.store.blobs import LocalBlob
from sluice.store.flush import BackgroundFlush
from sluice.store.pace import BURST_BYTES, Pacer
from sluice.store.reserve import Reserve
from sluice.store.session import NOTE_SUFFIX, Note, SessionFile
from sluice.store.settings import StoreSettings
from sluice.store.threads import submit
from sluice.store.words import Word

T = TypeVar("T")
Publish = Callable[..., Descriptor]
"""``(file, repositories, digest, size, replace=, word=)``: make the file content and link it there. Blocks."""

SPOOL_PREFIX = "spool-"
UPLOADS_BYTES = 4 << 20
"""Memory for the batches of all uploads together, as long as they are fewer than
``UPLOADS_BYTES / BATCHES / BATCH_BYTES_MIN``."""
BATCHES = 3
BATCH_BYTES_MAX = 256 << 10
BATCH_BYTES_MIN = 64 << 10
BATCH_CHUNKS_MAX = 1024  # IOV_MAX of Linux: buffers in one writev


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """An open session: ``offset`` bytes held, times in seconds since the epoch."""

    session: str
    repository: Repository
    offset: int
    started_at: float


class _Session:
    """A session in memory. ``lock``: one request at a time. ``last``: the newest job of the chain."""

    def __init__(self, note: Note, file: SessionFile, flush: BackgroundFlush, used_at: float) -> None:
        self.note = note
        self.file = file
        self.used_at = used_at
        self.lock = asyncio.Lock()
        self.last: Future[object] | None = None
        self.flush = flush
        self.gone = False


class LocalUploads:
    """``Uploads`` over the directory ``uploads/``; sessions are found again after a restart."""

    def __init__(
        self,
        directory: Path,
        reserve: Reserve,
        publish: Publish,
        settings: StoreSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._reserve = reserve
        self._publish = publish
        self._limit = settings.uploads_max
        self._pacer = Pacer(settings.write_bytes_per_s)
        self._pace_pushes = settings.pace_pushes
        self._clock = clock
        self._writers: Executor | None = None
        self._committers: Executor | None = None
        self._hashers: Executor | None = None
        self._readers: Executor | None = None
        self._receiving = 0
        for path in directory.glob(SPOOL_PREFIX + "*"):
            path.unlink()  # whoever filled it ended with the process before this one
        self._sessions: dict[str, _Session | None] = {
            path.name.removesuffix(NOTE_SUFFIX): None for path in directory.iterdir() if path.suffix == NOTE_SUFFIX
        }

    def use(self, writers: Executor, committers: Executor, hashers: Executor, readers: Executor) -> None:
        """Where to run: short writes, commits, which wait for the disk, hashing, which waits for nothing, and the reads
        of ``tail``."""
        self._writers, self._committers, self._hashers, self._readers = writers, committers, hashers, readers

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    async def start(self, repository: Repository, algorithm: str, prefix: str = "") -> str:
        """Open a session; raises TooManyUploads, StorageFull or DigestInvalid (unknown algorithm). With the prefix
        ``SPOOL_PREFIX`` it is this process's own, and does not outlive it."""
        if algorithm not in HEX_LENGTH:
            raise DigestInvalid(f"digest-algorithm {algorithm[:40]!r} is unknown: use one of {', '.join(HEX_LENGTH)}")
        if self.count >= self._limit:
            raise TooManyUploads(f"limits.uploads is {self._limit} and as many are open: finish or cancel one, or wait")
        self._reserve.check()
        identifier = prefix + secrets.token_hex(16)
        note = Note(repository, algorithm, self._clock())
        file = self._file(identifier, algorithm)
        session = _Session(note, file, BackgroundFlush(file, self._pacer), note.started_at)
        self._sessions[identifier] = session  # counted before the wait, so that the limit holds
        try:
            await self._run(self._writers, session, lambda: note.save(self._note_path(identifier)))
        except BaseException:
            self._forget(identifier, session)
            with contextlib.suppress(Exception):  # the note of a caller that went away may be on its way still
                await self._run(self._writers, session, lambda: self._note_path(identifier).unlink(missing_ok=True))
            raise
        return identifier

    async def offset(self, repository: Repository, session: str) -> int:
        """Bytes held so far; raises UploadUnknown."""
        found = await self._find(repository, session)
        await _settle(found)
        if found.gone:
            raise _unknown(session)
        return found.file.offset

    async def append(self, repository: Repository, session: str, offset: int | None, body: AsyncIterator[bytes]) -> int:
        """Append ``body`` and return the new offset; raises UploadUnknown, UploadRangeInvalid, StorageFull, and what
        ``body`` raises. What came before an error is kept."""
        found = await self._find(repository, session)
        async with found.lock:
            await self._ready(found, session)
            if offset is not None and offset != found.file.offset:
                raise UploadRangeInvalid(
                    f"chunk starts at {offset} and the upload stands at {found.file.offset}: continue from there",
                    offset=found.file.offset,
                )
            try:
                await self._receive(found, body)
            finally:
                found.used_at = self._clock()
        return found.file.offset

    async def append_batch(self, repository: Repository, session: str, batch: Sequence[bytes]) -> int:
        """Append what is in memory already, in at most ``BATCH_CHUNKS_MAX`` pieces; for a writer that does its own
        batching. The file stays open until the session ends, and the disk takes its bytes in the background at the
        ceiling's pace; this waits only where too many are ahead of it."""
        found = await self._find(repository, session)
        async with found.lock:
            await self._ready(found, session)
            await found.flush.room()
            try:
                return await self._run(self._writers, found, partial(found.file.write, batch, flush=False))
            finally:
                found.used_at = self._clock()
                assert self._committers is not None, "use() comes first"
                found.flush.begin(self._committers)

    async def verify(self, repository: Repository, session: str, digest: Digest) -> None:
        """What ``commit`` begins with, alone: raises DigestInvalid (the session is then gone)."""
        found = await self._find(repository, session)
        async with found.lock:
            await self._ready(found, session)
            await self._run(self._committers, found, partial(self._verify, session, found, digest))

    async def tail(self, repository: Repository, session: str) -> LocalBlob:
        """Open the session's file for reading while it grows, once it has bytes; raises UploadUnknown. It stays
        readable when the session is committed or dropped."""
        found = await self._find(repository, session)
        assert self._readers is not None, "use() comes first"
        try:
            descriptor = await self._in_thread(os.open, found.file.path, os.O_RDONLY)
        except OSError:
            raise _unknown(session) from None
        return LocalBlob(f"of upload {session}", descriptor, None, self._readers)

    async def commit(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        *,
        also: Sequence[Repository] = (),
        replace: bool = False,
        word: Word | None = None,
    ) -> Descriptor:
        """Verify, make durable, publish; raises DigestInvalid (the session is then gone), UploadUnknown or StorageFull
        (the session stays). ``also`` may read it. ``replace``: what is held is damaged. ``word``: ``store.words``."""
        found = await self._find(repository, session)
        async with found.lock:
            await self._ready(found, session)
            await found.flush.end()
            publish = partial(self._publish, replace=replace, word=word)
            job = partial(self._commit, session, found, digest, also, publish)
            return await self._run(self._committers, found, job)

    async def cancel(self, repository: Repository, session: str) -> None:
        """Drop the session; raises UploadUnknown."""
        found = await self._find(repository, session)
        async with found.lock:
            await self._ready(found, session)
            await found.flush.end(at_once=True)
            await self._run(self._writers, found, lambda: self._drop(session, found))

    async def list(self) -> Sequence[UploadInfo]:
        """All open sessions, the oldest first."""
        infos = []
        for identifier in tuple(self._sessions):
            with contextlib.suppress(UploadUnknown):
                found = await self._load(identifier)
                infos.append(UploadInfo(identifier, found.note.repository, found.file.offset, found.note.started_at))
        return sorted(infos, key=lambda info: info.started_at)

    async def expire(self, older_than_s: float) -> int:
        """Drop sessions without a byte for ``older_than_s`` seconds, and files as old that no session owns; returns
        how many."""
        limit = self._clock() - older_than_s
        dropped = 0
        for identifier in tuple(self._sessions):
            with contextlib.suppress(UploadUnknown):
                found = await self._load(identifier)
                if found.used_at <= limit and not found.lock.locked():
                    await self.cancel(found.note.repository, identifier)
                    dropped += 1
        return dropped + await self._in_thread(self._sweep, limit)

    async def _receive(self, session: _Session, body: AsyncIterator[bytes]) -> None:
        """Batch and write ``body``; one batch is written while the next one comes in."""
        batch: list[bytes] = []
        size = 0
        self._receiving += 1
        try:
            async for chunk in body:
                batch.append(chunk)
                size += len(chunk)
                if size >= self._batch_bytes() or len(batch) == BATCH_CHUNKS_MAX:
                    if self._pace_pushes:
                        await self._pace(session, size)
                    if session.last is not None:
                        await _uninterrupted(session.last)
                    self._chain(self._writers, session, partial(session.file.write, batch))
                    batch, size = [], 0
        finally:
            self._receiving -= 1
            await _uninterrupted(self._chain(self._writers, session, partial(session.file.write_last, batch)))

    async def _pace(self, session: _Session, size: int) -> None:
        """Keep to the ceiling; what is small goes first."""
        wait_s = self._pacer.take(size)
        if wait_s > 0 and session.file.offset + size > BURST_BYTES:
            await asyncio.sleep(wait_s)

    async def _find(self, repository: Repository, identifier: str) -> _Session:
        found = await self._load(identifier)
        if found.note.repository != repository:
            raise _unknown(identifier)
        return found

    async def _load(self, identifier: str) -> _Session:
        """The session in memory, read from the disk where it is from before a restart."""
        if identifier not in self._sessions:
            raise _unknown(identifier)
        known = self._sessions[identifier]
        if known is not None:
            return known
        read = await self._in_thread(self._read, identifier)
        # Another request may have been faster, or the session may have ended.
        if self._sessions.get(identifier, read) is None:
            self._sessions[identifier] = read
        known = self._sessions.get(identifier)
        if known is None:
            self._sessions.pop(identifier, None)
            raise _unknown(identifier)
        return known

    def _read(self, identifier: str) -> _Session | None:
        note = Note.load(self._note_path(identifier))
        if note is None:
            return None
        file = self._file(identifier, note.algorithm)
        newest = file.path if file.offset else self._note_path(identifier)
        return _Session(note, file, BackgroundFlush(file, self._pacer), newest.stat().st_mtime)

    def _file(self, identifier: str, algorithm: str) -> SessionFile:
        # A push gains from hashing beside writing. A fill is fed through more threads already, and two cores have none
        # to spare: the thread that writes a chunk hashes it.
        hashers = None if identifier.startswith(SPOOL_PREFIX) else self._hashers
        return SessionFile(self._directory / identifier, algorithm, self._reserve, self._pacer, hashers)

    def _batch_bytes(self) -> int:
        """How much to gather before it is written: a share of what all uploads may hold."""
        share = UPLOADS_BYTES // (BATCHES * max(self._receiving, 1))
        return max(BATCH_BYTES_MIN, min(BATCH_BYTES_MAX, share))

    async def _ready(self, session: _Session, identifier: str) -> None:
        """Call with the lock held: nothing runs on the session any more, and it is still there."""
        await _settle(session)
        session.last = None
        if session.gone:
            raise _unknown(identifier)

    def _chain(self, executor: Executor | None, session: _Session, job: Callable[[], T]) -> Future[T]:
        assert executor is not None, "use() comes first"
        before = session.last

        def in_turn() -> T:
            if before is not None:
                before.result()  # a hole must not follow a failed write: fail as that did
            return job()

        future = submit(executor, in_turn)
        session.last = future  # type: ignore[assignment]  # Future is invariant; only waited for
        return future

    async def _in_thread(self, job: Callable[..., T], *arguments: object) -> T:
        assert self._writers is not None, "use() comes first"
        return await asyncio.wrap_future(submit(self._writers, job, *arguments))

    async def _run(self, executor: Executor | None, session: _Session, job: Callable[[], T]) -> T:
        return await _uninterrupted(self._chain(executor, session, job))

    def _commit(
        self, identifier: str, session: _Session, digest: Digest, also: Sequence[Repository], publish: Publish
    ) -> Descriptor:
        self._verify(identifier, session, digest)
        session.file.close()
        repositories = [session.note.repository, *also]
        descriptor = publish(session.file.path, repositories, digest, session.file.offset)
        self._drop(identifier, session)
        return descriptor

    def _verify(self, identifier: str, session: _Session, digest: Digest) -> None:
        actual = session.file.digest(digest.algorithm)
        if actual != digest:
            self._drop(identifier, session)
            raise DigestInvalid(
                f"the upload's {session.file.offset} bytes have digest {actual}, not {digest}: push them again",
                detail={"expected": str(digest), "actual": str(actual)},
            )

    def _drop(self, identifier: str, session: _Session) -> None:
        session.file.drop()
        self._note_path(identifier).unlink(missing_ok=True)
        self._forget(identifier, session)

    def _forget(self, identifier: str, session: _Session) -> None:
        session.gone = True
        self._sessions.pop(identifier, None)

    def _sweep(self, limit: float) -> int:
        """Remove files that no session owns: what a crash or a power cut left of one, or of a manifest's write."""
        dropped = 0
        for path in self._directory.iterdir():
            if path.name.removesuffix(NOTE_SUFFIX) in self._sessions:
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    dropped += 1
        return dropped

    def _note_path(self, identifier: str) -> Path:
        return self._directory / (identifier + NOTE_SUFFIX)


async def _uninterrupted(future: Future[T]) -> T:
    """Wait for a job. Cancelling the wait leaves the job alone: its bytes are the client's, and others wait for it."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # though nobody may wait any more
    return await asyncio.shield(waiting)


async def _settle(session: _Session) -> None:
    """Wait until nothing runs; a failure was told to whoever asked for the job."""
    if session.last is not None and not session.last.done():
        with contextlib.suppress(Exception):
            await _uninterrupted(session.last)


def _unknown(identifier: str) -> UploadUnknown:
    return UploadUnknown(f"upload {identifier[:64]} does not exist in this repository: start a new one")

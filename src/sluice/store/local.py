"""The store on a local disk: ``Source``, ``Sink`` and ``Uploads`` over content files and the index.

The server's handlers talk to a ``LocalStore`` and to nothing below it. Each method here is thin: a query of
``store.queries`` in a reader thread, or a change of ``store.changes`` in a worker thread, which also tells the
listeners, so that a client that goes away between commit and answer leaves no stale cache behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from sluice.errors import BlobUnknown, DigestInvalid, SluiceError
from sluice.oci.content import BlobReader, BlobWriter, Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store import cached, changes, queries
from sluice.store.blobs import Contents
from sluice.store.cached import CachedTag, Standing
from sluice.store.changes import GENERIC_MEDIA_TYPE, TagMove
from sluice.store.events import Changes
from sluice.store.index import Index
from sluice.store.leases import Leases
from sluice.store.lists import KeptLists
from sluice.store.lock import DirectoryLock
from sluice.store.paths import Paths, make_data_directory, prepare
from sluice.store.placing import drop_unplaced
from sluice.store.queries import TagEvent, Totals
from sluice.store.reserve import Reserve
from sluice.store.settings import StoreSettings
from sluice.store.threads import submit
from sluice.store.touches import Key, Touches, flush
from sluice.store.uploads import SPOOL_PREFIX, LocalUploads
from sluice.store.words import Word
from sluice.store.writer import LocalBlobWriter

T = TypeVar("T")

__all__ = ["CachedTag", "LocalStore", "Standing", "StoreSettings", "TagEvent", "Totals"]

FLUSH_INTERVAL_S = 1.0
EXPIRE_INTERVAL_S = 300.0
WRITE_THREADS = 4
HASH_THREADS = 2
COMMIT_THREADS = 16  # commits that share one fsync of the index
BLOB_READ_THREADS = 8

_log = logging.getLogger(__name__)


class LocalStore:
    """One data directory, opened by this process alone.

    ``paths``, ``index``, ``touches``, ``leases``, ``events``, ``settings`` and ``clock`` are for garbage collection,
    eviction and checks; ``lists`` for caches.
    """

    def __init__(self, lock: DirectoryLock, paths: Paths, settings: StoreSettings, clock: Callable[[], float]) -> None:
        self._lock = lock
        self._word: Word | None = None
        self.paths = paths
        self.settings = settings
        self.clock = clock
        self.index = Index.open(paths.index)
        self.touches = Touches()
        self.leases = Leases()
        self.events = Changes()
        self.lists = KeptLists(self.index, clock)
        self._contents = Contents(paths, self.index)
        self._reserve = Reserve(paths.data, settings.reserve_bytes)
        self._writers = ThreadPoolExecutor(WRITE_THREADS, thread_name_prefix="sluice-write")
        self._committers = ThreadPoolExecutor(COMMIT_THREADS, thread_name_prefix="sluice-commit")
        self._hashers = ThreadPoolExecutor(HASH_THREADS, thread_name_prefix="sluice-hash")
        self._readers = ThreadPoolExecutor(BLOB_READ_THREADS, thread_name_prefix="sluice-read")
        drop_unplaced(paths, self.index)
        self.uploads = LocalUploads(paths.uploads, self._reserve, self._publish_blob, settings, clock)
        self.uploads.use(self._writers, self._committers, self._hashers, self._readers)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def open(cls, data: Path, settings: StoreSettings, clock: Callable[[], float] = time.time) -> LocalStore:
        """Open or create a data directory; raises DataDirectoryBusy, DataDirectoryTooNew or StoreDamaged."""
        make_data_directory(data)
        lock = DirectoryLock(Paths(data).lock)
        try:
            return cls(lock, prepare(data), settings, clock)
        except BaseException:
            lock.release()
            raise

    def seen_by(self, word: Word) -> LocalStore:
        """The same store as a cache sees it whose upstreams are those of ``word`` (``store.words``). Not to be started
        or closed: that is for the one that it is made of."""
        view = copy.copy(self)
        view._word = word
        return view

    def word(self, repository: Repository) -> str | None:
        """Whose word counts in this repository for whoever sees the store like this; None: everybody's."""
        return None if self._word is None else self._word(repository)

    async def start(self) -> None:
        """Begin the background work (flushing touches, dropping stale uploads); listeners run in this event loop."""
        self.events.attach()
        self._tasks = [
            asyncio.create_task(self._every(FLUSH_INTERVAL_S, self.flush_touches), name="flush touches"),
            asyncio.create_task(self._every(EXPIRE_INTERVAL_S, self._expire_uploads), name="expire uploads"),
        ]

    async def close(self) -> None:
        """Finish what runs, flush, and let go of the directory; idempotent. Later calls raise Unavailable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        with contextlib.suppress(SluiceError):
            await self.flush_touches()
        await asyncio.to_thread(self._shut)
        self.events.detach()

    def content_lock(self, digest: Digest) -> AbstractContextManager[None]:
        """Keep this content's file and row as they are (``Contents.content_lock``); blocks."""
        return self._contents.content_lock(digest)

    # Source

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """The manifest that a tag or digest names; raises NameUnknown or ManifestUnknown."""
        return await self.index.fetch(lambda c: queries.find_manifest(c, repository, reference, self.word(repository)))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """The manifest's exact bytes, verified; raises NameUnknown, ManifestUnknown or StoreDamaged."""
        return await self._in(self._readers, self._read_manifest, repository, digest)

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """Open a blob that this repository may read; raises BlobUnknown or StoreDamaged."""
        return await self._in(self._readers, self._open_blob, repository, digest)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown."""
        return await self.index.fetch(lambda c: queries.list_tags(c, repository, limit, last, self.word(repository)))

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """Manifests whose ``subject`` is this digest, in digest order; empty where there are none."""
        return await self.index.fetch(lambda c: queries.list_referrers(c, repository, subject, self.word(repository)))

    # Sink

    async def begin_blob(self, repository: Repository) -> BlobWriter:
        """Start new content; raises StorageFull or TooManyUploads."""
        return await self.begin_spool(repository, "sha256")

    async def put_manifest(
        self, repository: Repository, reference: Reference, manifest: Manifest, actor: str
    ) -> Descriptor:
        """Durable when it returns; raises ManifestBlobUnknown, DigestInvalid or StorageFull."""
        if isinstance(reference, Digest) and reference != manifest.digest:
            raise DigestInvalid(
                f"reference is {reference} and the manifest's digest is {manifest.digest}: push it there"
            )
        self._reserve.check()
        return await self._in(self._committers, self._put_manifest, repository, reference, manifest, actor)

    async def delete(self, repository: Repository, reference: Reference, actor: str) -> None:
        """Remove a tag, or a manifest with all tags on it; raises NameUnknown or ManifestUnknown."""
        move = TagMove(Tag(""), None, actor, self.clock(), self.settings.history_per_tag)
        await self._change(repository, lambda c: changes.delete_reference(c, repository, reference, move))

    # Beyond the contracts

    async def begin_spool(self, repository: Repository, algorithm: str) -> LocalBlobWriter:
        """``begin_blob`` for content that is read while it comes in, and is hashed with ``algorithm`` on its way. What
        a process leaves of one, the next one drops."""
        session = await self.uploads.start(repository, algorithm, SPOOL_PREFIX)
        return LocalBlobWriter(self.uploads, repository, session, self._word)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """What ``open_blob`` would open; raises BlobUnknown, also for a blob whose file is missing or of the wrong
        size, so that a client's next push brings it back. For a writer's HEAD call ``touch`` first."""
        return await self._in(self._readers, self._stat_blob, repository, digest)

    def touch(self, repository: Repository, digest: Digest) -> bool:
        """Keep what a writer has asked about for the grace period. Call it **before** looking; False: answer as if it
        were not held (``store.touches``)."""
        return self.touches.touch(repository, str(digest), self.clock())

    def use(self, repository: Repository, digest: Digest) -> bool:
        """A reader through a cache wants this. Call it **before** looking; False: answer as if it were not held."""
        return self.touches.use(repository, str(digest), self.clock())

    async def mount(self, repository: Repository, source: Repository, digest: Digest) -> Descriptor | None:
        """Link a blob of ``source`` in ``repository`` (spec: "Mounting a blob"). None where ``source`` has none."""
        try:
            found = await self.stat_blob(source, digest)
        except BlobUnknown:
            return None
        now = self.clock()
        linked = await self._change(repository, lambda c: changes.mount_blob(c, repository, source, digest, now))
        return found if linked else None

    async def link(self, repository: Repository, digest: Digest) -> bool:
        """Let ``repository`` read a blob that is held, wherever it came from. False where it is not held."""
        now = self.clock()
        word = self.word(repository)
        return await self._change(repository, lambda c: cached.link_held(c, repository, digest, now, word))

    async def cache_manifest(
        self, repository: Repository, manifest: Manifest, tag: Tag | None, actor: str
    ) -> Descriptor:
        """Hold a manifest whose blobs may come later, and let ``tag`` name it, as the upstream said just now. Durable
        when it returns; replaces damaged bytes. Raises StorageFull or Unavailable."""
        self._reserve.check()
        return await self._in(self._committers, self._cache_manifest, repository, manifest, tag, actor)

    async def confirm_tag(self, repository: Repository, tag: Tag, digest: Digest, actor: str) -> None:
        """The upstream said just now that ``tag`` names ``digest``, a manifest that is held: move the tag there."""
        move = TagMove(tag, digest, actor, self.clock(), self.settings.history_per_tag)
        await self._change(repository, lambda c: cached.confirm_tag(c, repository, move, self.word(repository)))

    async def tag_gone(self, repository: Repository, tag: Tag) -> None:
        """The upstream said just now that a tag which is served from here does not exist any more."""
        now = self.clock()
        await self._change(repository, lambda c: cached.note_gone(c, repository, tag, now, self.word(repository)))

    async def drop_tag(self, repository: Repository, tag: Tag, actor: str) -> None:
        """Serve the tag no longer, unless it is pinned; not an error where there is none."""
        move = TagMove(tag, None, actor, self.clock(), self.settings.history_per_tag)
        await self._change(repository, lambda c: cached.drop_tag(c, repository, move, self.word(repository)))

    async def pin_tag(self, repository: Repository, tag: Tag, pinned: bool) -> None:
        """Nail the tag to what it names now, or let it go; raises NameUnknown or ManifestUnknown."""
        await self._change(repository, lambda c: cached.pin_tag(c, repository, tag, pinned, self.word(repository)))

    async def cached_tag(self, repository: Repository, tag: Tag) -> CachedTag | None:
        """A tag that can be served, with what the upstream last said about it; None where there is none."""
        return await self.index.fetch(lambda c: cached.find_tag(c, repository, tag, self.word(repository)))

    async def standing(self, repository: Repository, digest: Digest) -> Standing:
        """How a blob stands to a repository."""
        return await self.index.fetch(lambda c: cached.find_standing(c, repository, digest, self.word(repository)))

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """Take a blob from a repository; raises BlobUnknown."""
        await self._change(repository, lambda c: changes.unlink_blob(c, repository, digest))

    async def repositories(self, limit: int, last: str | None) -> Sequence[Repository]:
        """Up to ``limit`` repositories that hold a manifest, after ``last`` in byte order."""
        return await self.index.fetch(lambda c: queries.list_repositories(c, limit, last))

    async def tag_history(self, repository: Repository, tag: Tag) -> Sequence[TagEvent]:
        """Who moved the tag where, newest first; raises NameUnknown."""
        return await self.index.fetch(lambda c: queries.list_history(c, repository, tag))

    async def totals(self) -> Totals:
        """What is held in all."""
        counts = await self.index.fetch(queries.count)
        return Totals(counts["contents"], counts["bytes"], self.uploads.count)

    def writable(self) -> bool:
        """Whether there is room for a write (``storage.reserve``)."""
        return self._reserve.writable()

    def free_bytes(self) -> int:
        """Bytes that may still be written before ``storage.reserve`` is reached; negative below it."""
        return self._reserve.free_bytes()

    async def flush_touches(self) -> None:
        """Write waiting touches to the index; nothing is written where none wait. Raises StorageFull."""
        if not len(self.touches):
            return
        taken: dict[Key, float] = {}
        try:
            await self.index.write(lambda c: taken.update(flush(c, self.touches)))
        except BaseException:
            self.touches.restore(taken)
            raise

    # In worker threads

    def _publish_blob(
        self,
        path: Path,
        repositories: Sequence[Repository],
        digest: Digest,
        size: int,
        replace: bool,
        word: Word | None,
    ) -> Descriptor:
        now = self.clock()

        def record(connection: sqlite3.Connection) -> None:
            changes.hold_content(connection, digest, size, now)
            for repository in repositories:
                changes.link_blob(connection, repository, digest, now, None if word is None else word(repository))

        self._contents.publish(path, digest, size, record, replace=replace)
        for repository in repositories:
            self.events.notify(repository)
        return Descriptor(GENERIC_MEDIA_TYPE, digest, size)

    def _put_manifest(self, repository: Repository, reference: Reference, manifest: Manifest, actor: str) -> Descriptor:
        now, settings = self.clock(), self.settings

        def record(connection: sqlite3.Connection) -> None:
            changes.enter_manifest(connection, repository, manifest, now, settings.sparse_indexes)
            if not isinstance(reference, Digest):
                move = TagMove(reference, manifest.digest, actor, now, settings.history_per_tag)
                changes.move_tag(connection, repository, move)

        return self._publish_manifest(repository, manifest, record)

    def _cache_manifest(self, repository: Repository, manifest: Manifest, tag: Tag | None, actor: str) -> Descriptor:
        now, keep, word = self.clock(), self.settings.history_per_tag, self.word(repository)

        def record(connection: sqlite3.Connection) -> None:
            changes.enter_partial_manifest(connection, repository, manifest, now, word)
            if tag is not None:
                cached.confirm_tag(connection, repository, TagMove(tag, manifest.digest, actor, now, keep), word)

        return self._publish_manifest(repository, manifest, record, replace=True)

    def _publish_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        record: Callable[[sqlite3.Connection], None],
        *,
        replace: bool = False,
    ) -> Descriptor:
        staged = self._contents.stage(SPOOL_PREFIX + secrets.token_hex(16), manifest.raw)
        try:
            self._contents.publish(staged, manifest.digest, len(manifest.raw), record, replace=replace)
        finally:
            staged.unlink(missing_ok=True)
        self.events.notify(repository)
        return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))

    def _read_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        with self.leases.held(repository, digest):
            found = self.index.read(lambda c: queries.find_manifest(c, repository, digest, self.word(repository)))
            return Manifest.parse(self._contents.read(digest, found.size), found.media_type, digest.algorithm)

    def _open_blob(self, repository: Repository, digest: Digest) -> BlobReader:
        lease = self.leases.take(repository, digest)  # before looking: whoever unlinks the file sees it
        try:
            size = self.index.read(lambda c: queries.blob_size(c, repository, digest, self.word(repository)))
            return self._contents.open(digest, size, self._readers, lambda: self.leases.drop(lease))
        except BaseException:
            self.leases.drop(lease)
            raise

    def _stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        with self.leases.held(repository, digest):
            size = self.index.read(lambda c: queries.blob_size(c, repository, digest, self.word(repository)))
            intact = self._contents.has_file(digest, size)
        if not intact:
            _log.error("blob %s has a row and no intact file: answered as unknown", digest)
            raise BlobUnknown(f"blob {digest} is damaged in this store: push it again")
        return Descriptor(GENERIC_MEDIA_TYPE, digest, size)

    async def _change(self, repository: Repository, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run a change in the index's writer thread and tell the listeners before the caller goes on."""
        future = self.index.submit(change)
        future.add_done_callback(
            lambda done: None if done.cancelled() or done.exception() else self.events.notify(repository)
        )
        return await asyncio.wrap_future(future)

    async def _in(self, executor: ThreadPoolExecutor, job: Callable[..., T], *arguments: object) -> T:
        return await asyncio.wrap_future(submit(executor, job, *arguments))

    async def _expire_uploads(self) -> None:
        await self.uploads.expire(self.settings.upload_age_s)

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except (SluiceError, OSError) as error:
                _log.warning("background work failed, next try in %s s: %s", interval_s, error)

    def _shut(self) -> None:
        for executor in (self._writers, self._committers, self._hashers, self._readers):
            executor.shutdown()
        self.index.close()
        self._lock.release()

"""Garbage collection: remove what nothing holds, beside pushes and pulls.

``store.reach`` says what is garbage; this module takes it away in four steps, each safe to stop after:

1. manifests that nothing holds, 2. links (blobs of a repository) that no manifest names, 3. contents that no
repository has: their rows go and the digests are *condemned*; 4. files that have been condemned for
``unlink_delay_s``, for a reader may have looked a blob up just before its row went.

Steps 1 to 3 work on a list that was read without holding anybody up. Each batch of it is one index change that decides
again, in the writer thread, what of the batch may go. So whatever was pushed, tagged or asked for since then stays, and
a manifest that is put afterwards finds its blobs or is refused. Step 4 holds the digest's ``content_lock``: a push
that brings the content back lifts the condemnation under that lock, or comes later and brings a new file.

Uploads are not touched here: they have an age limit of their own.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from sluice.errors import GcRunning, SluiceError, Unavailable
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store import condemned
from sluice.store.index import Index
from sluice.store.local import LocalStore
from sluice.store.reach import Garbage, chunks, find_garbage, still_doomed, still_loose
from sluice.store.touches import Key, flush

EXAMPLES_MAX = 20  # names in a report
PAUSE_MAX_S = 0.5  # after a batch; a batch is followed by a pause as long as it took, so that pushes get half the disk
FIRST_RUN_S = 300.0  # longest wait after the server's start, so that one that restarts every day collects too
UNLINK_TICK_MIN_S = 1.0

Progress = Callable[[Mapping[str, object]], None]
"""Told ``{"step", "manifests", "links", "blobs", "unlinked"}`` after each batch; what it raises ends the collection."""

_Choose = Callable[[sqlite3.Connection, AbstractSet[str]], set[str]]
_Remove = Callable[[sqlite3.Connection, AbstractSet[str]], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection removed, or would remove where ``dry_run``.

    ``manifests`` and ``links`` are rows of repositories, ``blobs`` contents (blobs and manifests alike) that no
    repository has any more, of ``bytes`` bytes. ``unlinked`` files of ``unlinked_bytes`` bytes were condemned long
    enough to go from the disk. ``examples``: up to ``EXAMPLES_MAX`` names of what went from repositories.
    """

    manifests: int
    links: int
    blobs: int
    bytes: int
    unlinked: int
    unlinked_bytes: int
    dry_run: bool
    duration_s: float
    examples: tuple[str, ...]


@dataclass(slots=True)
class _Tally:
    """A report in the making."""

    manifests: int = 0
    links: int = 0
    blobs: int = 0
    bytes: int = 0
    unlinked: int = 0
    unlinked_bytes: int = 0
    examples: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def name(self, repository: str, kind: str, digests: AbstractSet[str]) -> None:
        room = EXAMPLES_MAX - len(self.examples)
        self.examples += [f"{kind} {repository}@{digest}" for digest in sorted(digests)[:room]]

    def counts(self, step: str) -> dict[str, object]:
        counted = {name: getattr(self, name) for name in ("manifests", "links", "blobs", "unlinked")}
        return {"step": step, **counted}

    def report(self, *, dry_run: bool) -> GcReport:
        return GcReport(
            self.manifests,
            self.links,
            self.blobs,
            self.bytes,
            self.unlinked,
            self.unlinked_bytes,
            dry_run,
            time.monotonic() - self.started,
            tuple(self.examples),
        )


def plan(store: LocalStore) -> GcReport:
    """What ``collect`` would do now. Blocks its thread; writes nothing and holds up no writer."""
    tally = _Tally()
    due = store.clock() - store.settings.unlink_delay_s
    store.index.read(lambda connection: _foresee(connection, store.clock() - store.settings.grace_s, tally))
    for page in condemned.pages(store.index, due):
        sizes = [size for digest, _ in page if (size := _file_size(store, digest)) is not None]
        tally.unlinked += len(sizes)
        tally.unlinked_bytes += sum(sizes)
    return tally.report(dry_run=True)


def collect(store: LocalStore, on_progress: Progress | None = None, *, offline: bool = False) -> GcReport:
    """Collect garbage once, by the store's ``grace_s`` and ``unlink_delay_s``. Blocks: run it in a thread.

    ``offline``: nobody reads the store, so files go at once. Raises GcRunning where one runs already, StorageFull,
    and what ``on_progress`` raises; what was removed until then stays removed.
    """
    with _alone(store.index):
        tally = _Tally()
        _Collection(store, tally, on_progress).run(0.0 if offline else store.settings.unlink_delay_s)
        return tally.report(dry_run=False)


def unlink_condemned(store: LocalStore) -> tuple[int, int]:
    """Step 4 alone; safe beside ``collect``. Returns how many files went, and their bytes. Blocks."""
    tally = _Tally()
    _Collection(store, tally, None).unlink(store.settings.unlink_delay_s)
    return tally.unlinked, tally.unlinked_bytes


def unlink_file(store: LocalStore, digest: Digest, condemned_at: float) -> int | None:
    """Unlink a file, if this condemnation of it still stands; returns its bytes, None where there was nothing to do.
    Raises OSError. Blocks."""
    path = store.paths.content(digest)
    with store.content_lock(digest):
        if not store.index.read(partial(condemned.stands, digest=str(digest), condemned_at=condemned_at)):
            return None
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return None
    return size


class GcSchedule:
    """Collects every ``interval_s`` seconds (0: never by itself) and unlinks what is condemned in between.

    ``last_success``: when a collection last ended well, in seconds since the epoch, 0 before the first. ``unlinked``
    and ``unlinked_bytes`` count files since the start.
    """

    def __init__(self, store: LocalStore, interval_s: float, wanted: Callable[[], bool] = lambda: True) -> None:
        """``wanted`` says, when a collection is due, whether it shall be."""
        self._wanted = wanted
        self.last_success = 0.0
        self.unlinked = 0
        self.unlinked_bytes = 0
        self._store = store
        self._interval_s = interval_s

    async def run(self) -> None:
        """Run until cancelled; a failure is logged and tried again next time."""
        tick_s = max(self._store.settings.unlink_delay_s, UNLINK_TICK_MIN_S)
        next_run = time.monotonic() + min(self._interval_s, FIRST_RUN_S)
        while True:
            wait_s = next_run - time.monotonic() if self._interval_s else tick_s
            await asyncio.sleep(max(0.0, min(tick_s, wait_s)))
            try:
                if self._interval_s and time.monotonic() >= next_run:
                    next_run = time.monotonic() + self._interval_s
                    if self._wanted():
                        _log.info("garbage collection: %s", await self.collect())
                else:
                    self._count(*await asyncio.to_thread(unlink_condemned, self._store))
            except (SluiceError, OSError) as error:
                _log.error("garbage collection failed, it is tried again later: %s", error)

    async def collect(self, on_progress: Progress | None = None) -> GcReport:
        """``collect`` in a thread. Cancelled, it stops after the batch at hand and only then lets the caller go, so
        that the index is not closed under it."""
        stopping = threading.Event()

        def report(progress: Mapping[str, object]) -> None:
            if stopping.is_set():
                raise Unavailable("garbage collection was stopped: start it again")
            if on_progress is not None:
                on_progress(progress)

        work = asyncio.ensure_future(asyncio.to_thread(collect, self._store, report))
        try:
            done = await asyncio.shield(work)
        except asyncio.CancelledError:
            stopping.set()
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            raise
        self.last_success = self._store.clock()
        self._count(done.unlinked, done.unlinked_bytes)
        return done

    def _count(self, files: int, size: int) -> None:
        self.unlinked += files
        self.unlinked_bytes += size


class _Removal:
    """One batch from one repository on its way through the protocol of ``store.touches``."""

    def __init__(self, store: LocalStore, repository: str, choose: _Choose, remove: _Remove) -> None:
        self._store = store
        self._repository = Repository(repository)
        self._choose = choose
        self._remove = remove
        self._taken: dict[Key, float] = {}
        self._blocked: set[Key] = set()

    def run(self) -> set[str]:
        """Returns the digests that went."""
        try:
            removed = self._store.index.write_blocking(self._change)
            if removed:
                self._store.events.notify(self._repository)
        except BaseException:
            self._store.touches.restore(self._taken)
            raise
        finally:
            self._store.touches.unblock(self._blocked)
        return removed

    def _change(self, connection: sqlite3.Connection) -> set[str]:
        touches = self._store.touches
        self._taken = flush(connection, touches)
        victims = self._choose(connection, frozenset())
        self._blocked = {(self._repository, digest) for digest in victims}
        spared = {digest for _, digest in touches.block(self._blocked)}
        if spared:
            victims = self._choose(connection, spared)
        self._remove(connection, victims)
        return victims


class _Collection:
    """One run over the whole store."""

    def __init__(self, store: LocalStore, tally: _Tally, on_progress: Progress | None) -> None:
        self._store = store
        self._tally = tally
        self._on_progress = on_progress
        self._cutoff = store.clock() - store.settings.grace_s

    def run(self, unlink_delay_s: float) -> None:
        for number, name in self._store.index.read(_repositories):
            found = self._store.index.read(partial(find_garbage, repository=number, name=name, cutoff=self._cutoff))
            for batch in found.manifests:
                self._sweep(found, batch, "manifest")
            for batch in chunks(found.links):
                self._sweep(found, batch, "blob")
        self._condemn()
        self.unlink(unlink_delay_s)

    def _sweep(self, found: Garbage, batch: Sequence[str], kind: str) -> None:
        decide, remove = (still_doomed, _remove_manifests) if kind == "manifest" else (still_loose, _remove_links)

        def choose(connection: sqlite3.Connection, spared: AbstractSet[str]) -> set[str]:
            return decide(connection, found, batch, self._cutoff, spared)

        with self._paced(f"{kind}s"):
            gone = _Removal(self._store, found.name, choose, partial(remove, repository=found.repository)).run()
            self._tally.manifests += len(gone) if kind == "manifest" else 0
            self._tally.links += len(gone) if kind == "blob" else 0
            self._tally.name(found.name, kind, gone)

    def _condemn(self) -> None:
        last = ""
        while page := self._store.index.read(partial(condemned.unheld_page, after=last)):
            with self._paced("contents"):
                now = self._store.clock()
                sizes = self._store.index.write_blocking(partial(condemned.condemn, digests=page, now=now))
                self._tally.blobs += len(sizes)
                self._tally.bytes += sum(sizes.values())
            last = page[-1]

    def unlink(self, delay_s: float) -> None:
        """Unlink what has been condemned for ``delay_s``; a file that cannot be unlinked is left for the next time."""
        for page in condemned.pages(self._store.index, self._store.clock() - delay_s):
            with self._paced("files"):
                done = [(digest, at) for digest, at in page if self._unlink(Digest.parse(digest), at)]
                self._store.index.write_blocking(partial(condemned.absolve, rows=done))

    def _unlink(self, digest: Digest, condemned_at: float) -> bool:
        """Whether the condemnation is dealt with."""
        try:
            size = unlink_file(self._store, digest, condemned_at)
        except OSError as error:
            _log.error("content %s cannot be unlinked, it is tried again later: %s", digest, error)
            return False
        self._tally.unlinked += size is not None
        self._tally.unlinked_bytes += size or 0
        return True

    @contextmanager
    def _paced(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        if self._on_progress is not None:
            self._on_progress(self._tally.counts(step))
        time.sleep(min(time.monotonic() - began, PAUSE_MAX_S))


_collecting: weakref.WeakSet[Index] = weakref.WeakSet()
_collecting_lock = threading.Lock()


@contextmanager
def _alone(index: Index) -> Iterator[None]:
    """One collection of a store at a time: two would not harm it, but each report would miss what the other did."""
    with _collecting_lock:
        if index in _collecting:
            raise GcRunning("garbage collection is running already: wait for it to end")
        _collecting.add(index)
    try:
        yield
    finally:
        with _collecting_lock:
            _collecting.discard(index)


def _foresee(connection: sqlite3.Connection, cutoff: float, tally: _Tally) -> None:
    """Fill in what the first three steps would do to this snapshot."""
    rows: Counter[str] = Counter()
    for number, name in _repositories(connection):
        found = find_garbage(connection, number, name, cutoff)
        for kind, listed in [("manifest", batch) for batch in found.manifests] + [
            ("blob", batch) for batch in chunks(found.links)
        ]:
            tally.name(name, kind, set(listed))
            rows.update(listed)
        tally.manifests += sum(map(len, found.manifests))
        tally.links += len(found.links)
    sizes = condemned.sizes_left_unheld(connection, rows)
    tally.blobs, tally.bytes = len(sizes), sum(sizes)


def _repositories(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    return connection.execute("SELECT id, name FROM repositories ORDER BY id").fetchall()


def _remove_manifests(connection: sqlite3.Connection, digests: AbstractSet[str], repository: int) -> None:
    rows = [(repository, digest) for digest in digests]
    connection.executemany("DELETE FROM edges WHERE repository = ? AND parent = ?", rows)
    connection.executemany("DELETE FROM manifests WHERE repository = ? AND digest = ?", rows)


def _remove_links(connection: sqlite3.Connection, digests: AbstractSet[str], repository: int) -> None:
    rows = [(repository, digest) for digest in digests]
    connection.executemany("DELETE FROM links WHERE repository = ? AND digest = ?", rows)


def _file_size(store: LocalStore, digest: str) -> int | None:
    try:
        return store.paths.content(Digest.parse(digest)).stat().st_size
    except FileNotFoundError:
        return None

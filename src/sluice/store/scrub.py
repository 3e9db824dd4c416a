"""The check of a store: files against rows, bytes against digests, rows against each other.

``sluice fsck``. It works on an open store, beside a running server or alone. It looks without locks and believes
nothing bad before it has seen it again under the digest's ``content_lock``, where no push, removal or repair of that
content is half done.

Without ``repair`` it changes nothing. With it, damaged files go to ``quarantine/``, their rows go, so that clients
are told to push the content again, and the report names every image that is incomplete until then. Nothing is deleted.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from sluice.errors import DigestInvalid, StoreDamaged, Unavailable
from sluice.oci.digest import HEX_LENGTH, Digest
from sluice.oci.reference import Repository
from sluice.store import condemned
from sluice.store.audit import (
    contents_page,
    contradictions,
    forget,
    quick_check,
    reconcile,
    repositories_with,
    with_rows,
)
from sluice.store.closure import incomplete
from sluice.store.findings import Damaged, Findings, FsckReport, Stray
from sluice.store.local import LocalStore
from sluice.store.pace import drop_cache
from sluice.store.paths import SHARDS
from sluice.store.queries import content_size
from sluice.store.reach import chunks

REPOSITORIES_NAMED_MAX = 3  # of those that had a damaged content
STRAY_AGE_S = 3600.0  # youngest file without a row that is called stray; pushes take less from rename to commit
READ_BYTES = 1 << 20
PROGRESS_INTERVAL_S = 0.5
# With more of the files missing than this share, what is damaged is not the files: repairing would forget the store.
REPAIR_MISSING_SHARE = 0.5
REPAIR_MISSING_MIN = 20  # files; below, a share says nothing

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_DAMAGE = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENXIO})

Progress = Callable[[Mapping[str, object]], None]
"""Told ``{"step", "contents", "bytes", "findings"}`` about twice a second; what it raises ends the check."""

_log = logging.getLogger(__name__)


def check(
    store: LocalStore,
    repair: bool = False,
    *,
    hash_content: bool = True,
    rate_bytes_s: int | None = None,
    on_progress: Progress | None = None,
) -> FsckReport:
    """Check the whole store; blocks: run it in a thread.

    ``hash_content`` False compares sizes only. ``rate_bytes_s`` bounds what is read each second. Raises Unavailable
    where a file cannot be read for a reason other than damage, StorageFull, and what ``on_progress`` raises.
    """
    return _Check(store, repair, hash_content, rate_bytes_s, on_progress).run()


class _Check:
    """One run."""

    def __init__(
        self, store: LocalStore, repair: bool, hashing: bool, rate_bytes_s: int | None, on_progress: Progress | None
    ) -> None:
        self._store = store
        self._repair = repair
        self._hashing = hashing
        self._rate_bytes_s = rate_bytes_s
        self._on_progress = on_progress
        self._found = Findings()
        self._lost: set[str] = set()
        self._contents = 0
        self._bytes = 0
        self._began = self._hashing_began = time.monotonic()
        self._told = float("-inf")

    def run(self) -> FsckReport:
        """The steps in order; a repair comes before the question what is incomplete."""
        for complaint in self._check_index():
            self._found.add("index", complaint)
        if self._found.index:
            self._repair = False
        else:
            self._consider_repair()
            self._check_contents()
            self._check_strays()
            self._check_rows()
            self._store.index.read(self._check_closures)
        duration_s = time.monotonic() - self._began
        return self._found.report(self._contents, self._bytes, repaired=self._repair, duration_s=duration_s)

    def _check_index(self) -> tuple[str, ...]:
        try:
            return self._store.index.read(quick_check)
        except StoreDamaged as error:
            return (str(error),)

    def _consider_repair(self) -> None:
        """No repair where most files are missing: a disk that is not mounted looks like that."""
        if not self._repair:
            return
        held = missing = 0
        for page in self._pages():
            held += len(page)
            missing += sum(not self._store.paths.content(digest).exists() for digest, _ in page)
            self._tell("files")
        if missing >= REPAIR_MISSING_MIN and missing > held * REPAIR_MISSING_SHARE:
            self._repair = False
            self._found.add(
                "rows",
                f"{missing} of {held} content files are missing, so nothing was repaired:"
                f" check that the disk of {self._store.paths.contents} is mounted",
            )

    def _pages(self) -> Iterator[list[tuple[Digest, int]]]:
        after = ""
        while page := self._store.index.read(partial(contents_page, after=after)):
            named = [(_digest_of(digest), size) for digest, size in page]
            yield [(digest, size) for digest, size in named if digest is not None]  # the others: ``contradictions``
            after = page[-1][0]

    def _check_contents(self) -> None:
        self._hashing_began = time.monotonic()
        for page in self._pages():
            for digest, size in page:
                self._check_content(digest, size)
            self._tell("contents")

    def _check_content(self, digest: Digest, size: int) -> None:
        self._contents += 1
        path = self._store.paths.content(digest)
        seen = _identity(path)
        problem = self._problem(digest, size)
        if problem is None:
            return
        with self._store.content_lock(digest):
            # Another file under the name is a push's, which has verified it; no row, and it was collected.
            held = self._store.index.read(partial(content_size, digest=digest)) is not None
            if held and seen == _identity(path):
                self._lost.add(str(digest))
                self._found.add("damaged", self._put_away(digest, problem))

    def _put_away(self, digest: Digest, problem: str) -> Damaged:
        """Report damaged content and, in a repair, remove its rows first and then its file: what is between is a
        file without a row, never the reverse."""
        _log.error("content %s is damaged: %s", digest, problem)
        if not self._repair:
            names = self._store.index.read(partial(repositories_with, digest=str(digest)))
            return Damaged(str(digest), problem, tuple(sorted(names)[:REPOSITORIES_NAMED_MAX]), None)
        names = self._store.index.write_blocking(partial(forget, digests=[str(digest)], now=self._store.clock()))
        for name in names:
            self._store.events.notify(Repository(name))
        moved = self._quarantine(self._store.paths.content(digest))
        return Damaged(str(digest), problem, tuple(sorted(names)[:REPOSITORIES_NAMED_MAX]), moved)

    def _problem(self, digest: Digest, size: int) -> str | None:
        """What is wrong with a content's file, or None."""
        path = self._store.paths.content(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return _unreadable(path, error)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "its name is not that of a regular file"
            if status.st_size != size:
                return f"its file has {status.st_size} bytes, not {size}"
            return self._problem_inside(descriptor, digest, size) if self._hashing else None
        finally:
            os.close(descriptor)

    def _problem_inside(self, descriptor: int, digest: Digest, size: int) -> str | None:
        hasher = digest.hasher()
        buffer = memoryview(bytearray(min(READ_BYTES, size)))
        offset = 0
        while offset < size:
            try:
                count = _read(descriptor, buffer[: size - offset], offset)
            except OSError as error:  # of the file alone: what the listener of the progress raises is no damage
                return _unreadable(self._store.paths.content(digest), error)
            if not count:
                break
            hasher.update(buffer[:count])
            offset += count
            self._spend(count)
        return None if hasher.hexdigest() == digest.hex else "its bytes have another digest"

    def _spend(self, count: int) -> None:
        self._bytes += count
        self._tell("contents")
        if self._rate_bytes_s:
            ahead_s = self._bytes / self._rate_bytes_s - (time.monotonic() - self._hashing_began)
            time.sleep(max(0.0, ahead_s))

    def _check_strays(self) -> None:
        for algorithm in HEX_LENGTH:
            for shard in SHARDS:
                with os.scandir(self._store.paths.contents / algorithm / shard) as entries:
                    names = {entry.name: _named(algorithm, shard, entry.name) for entry in entries}
                known = self._known({str(digest) for digest in names.values() if digest is not None})
                for name, digest in sorted(names.items()):
                    if digest is None or str(digest) not in known:
                        self._check_stray(self._store.paths.contents / algorithm / shard / name, digest)
                self._tell("strays")

    def _known(self, digests: set[str]) -> set[str]:
        known: set[str] = set()
        for chunk in chunks(sorted(digests)):
            known |= self._store.index.read(partial(with_rows, digests=json.dumps(chunk)))
        return known

    def _check_stray(self, path: Path, digest: Digest | None) -> None:
        if digest is None:
            self._report_stray(path)
            return
        with self._store.content_lock(digest):
            if not self._known({str(digest)}):
                self._report_stray(path)

    def _report_stray(self, path: Path) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if max(status.st_mtime, status.st_ctime) > self._store.clock() - STRAY_AGE_S:
            return
        moved = self._quarantine(path) if self._repair else None
        self._found.add("strays", Stray(str(path.relative_to(self._store.paths.data)), status.st_size, moved))

    def _quarantine(self, path: Path) -> str | None:
        """Move a file out of service; its new name in the data directory, or None where there is none to move."""
        stamp = int(self._store.clock())
        target = self._store.paths.quarantine / f"{path.name}.{stamp}"
        while target.exists():
            stamp += 1
            target = target.with_name(f"{path.name}.{stamp}")
        try:
            path.rename(target)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("%s cannot be moved to quarantine: %s", path, error)
            return None
        return str(target.relative_to(self._store.paths.data))

    def _check_rows(self) -> None:
        for text in self._store.index.read(lambda connection: list(contradictions(connection))):
            self._found.add("rows", text)
        self._check_condemned()
        if self._repair and self._found.counts["rows"]:
            for name in self._store.index.write_blocking(partial(reconcile, now=self._store.clock())):
                self._store.events.notify(Repository(name))

    def _check_condemned(self) -> None:
        """Condemned long ago and the file gone: garbage collection was cut off before it could forget."""
        due = self._store.clock() - self._store.settings.unlink_delay_s - STRAY_AGE_S
        for page in condemned.pages(self._store.index, due):
            gone = [row for row in page if not self._store.paths.content(Digest.parse(row[0])).exists()]
            for digest, _ in gone:
                self._found.add("rows", f"condemned content {digest} has no file")
            if self._repair:
                self._store.index.write_blocking(partial(condemned.absolve, rows=gone))

    def _check_closures(self, connection: sqlite3.Connection) -> None:
        sparse = self._store.settings.sparse_indexes
        # After a repair the rows themselves say it, but for what was pushed again since.
        lost = self._lost - with_rows(connection, json.dumps(list(self._lost))) if self._repair else self._lost
        for number, name in connection.execute("SELECT id, name FROM repositories ORDER BY name").fetchall():
            for image in incomplete(connection, number, name, lost, sparse=sparse):
                self._found.add("incomplete", image)
            self._tell("images")

    def _tell(self, step: str) -> None:
        now = time.monotonic()
        if self._on_progress is not None and now - self._told >= PROGRESS_INTERVAL_S:
            self._told = now
            findings = sum(self._found.counts.values())
            self._on_progress({"step": step, "contents": self._contents, "bytes": self._bytes, "findings": findings})


def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read on; what was not in the page cache before is dropped from it again, so that a check of everything does not
    push out what clients are reading."""
    try:
        if _NOWAIT and os.preadv(descriptor, [buffer], offset, _NOWAIT) == len(buffer):
            return len(buffer)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EOPNOTSUPP}:
            raise
    count = os.preadv(descriptor, [buffer], offset)
    drop_cache(descriptor, offset, count)
    return count


def _unreadable(path: Path, error: OSError) -> str:
    """The problem with a file that cannot be read; raises Unavailable where that says nothing about the file."""
    if error.errno == errno.ENOENT:
        return "its file is missing"
    if error.errno in _DAMAGE:
        return f"its file cannot be read ({error.strerror})"
    raise Unavailable(f"cannot check {path} ({error.strerror}): remove the cause and check again") from error


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from one that has replaced it."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_ctime_ns


def _digest_of(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _named(algorithm: str, shard: str, name: str) -> Digest | None:
    """The digest that a file's place says, or None where content never has such a name there."""
    return _digest_of(f"{algorithm}:{name}") if name.startswith(shard) else None

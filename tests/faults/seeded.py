"""A server with a defect in it, to show that the suites would notice: ``python -m faults.seeded DEFECT serve …``.

The defects replace functions of the store in their own process; nothing in the product knows of them.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from sluice.cache import evict, fill, readers, space
from sluice.cache.spool import Spool
from sluice.cli import main
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.store import blobs, eviction, index
from sluice.store.events import Changes
from sluice.store.session import SessionFile
from sluice.store.uploads import LocalUploads
from sluice.testing.server import SluiceServer

COMMIT_DELAY_S = 0.3
OFFSET_STEP = 4096
TESTS = Path(__file__).parent.parent

replace = pytest.MonkeyPatch().setattr


class SeededServer(SluiceServer):
    """``SluiceServer`` with one of ``DEFECTS``, over plain HTTP."""

    def __init__(self, data: Path, *flags: str, defect: str) -> None:
        super().__init__(data, *flags, tls=False, environment={"PYTHONPATH": str(TESTS)})
        self.defect = defect

    def command(self) -> list[str]:
        """The same command through this module."""
        python, _, _, *arguments = super().command()
        return [python, "-m", "faults.seeded", self.defect, *arguments]


def no_file_fsync() -> None:
    """Content is renamed into place without its bytes being on the disk."""
    replace(blobs, "_fsync_file", lambda path: None)


def late_file_fsync() -> None:
    """Content is fsynced after its rename and its commit."""
    fsync, place = blobs._fsync_file, blobs.Contents._place

    def place_first(contents: Any, staged: Path, digest: Digest, record: Callable[[sqlite3.Connection], Any]) -> Any:
        result = place(contents, staged, digest, record)
        fsync(contents._paths.content(digest))
        return result

    no_file_fsync()
    replace(blobs.Contents, "_place", place_first)


def no_directory_fsync() -> None:
    """The new name of content may be lost."""
    replace(blobs, "fsync_directory", lambda path: None)


def no_index_fsync() -> None:
    """Commits stay in the page cache."""
    prepare = index._prepare

    def prepare_unsafely(connection: sqlite3.Connection, path: Path) -> None:
        prepare(connection, path)
        connection.execute("PRAGMA synchronous = OFF")

    replace(index, "_prepare", prepare_unsafely)


def early_acknowledgement() -> None:
    """Writers go on before the commit, which takes its time."""
    commit = index.Index._commit

    def commit_late(self: index.Index, batch: Any) -> None:
        time.sleep(COMMIT_DELAY_S)
        commit(self, batch)

    def submit_only(self: index.Index, change: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        return self.submit(change)

    replace(index.Index, "_commit", commit_late)
    replace(index.Index, "write_blocking", submit_only)


def no_digest_check() -> None:
    """Whatever was uploaded is published under the digest that the client named."""

    def commit(self: Any, identifier: str, session: Any, digest: Digest, _: Any, publish: Any) -> Descriptor:
        session.file.close()
        repositories, size = [session.note.repository], session.file.offset
        descriptor: Descriptor = publish(session.file.path, repositories, digest, size)
        self._drop(identifier, session)
        return descriptor

    replace(LocalUploads, "_commit", commit)


def row_before_file() -> None:
    """The index names content whose file comes a little later."""

    def place(contents: Any, staged: Path, digest: Digest, record: Callable[[sqlite3.Connection], Any]) -> Any:
        result = contents._index.write_blocking(record)
        time.sleep(COMMIT_DELAY_S)
        staged.rename(contents._paths.content(digest))
        return result

    replace(blobs.Contents, "_place", place)


def false_offset() -> None:
    """An upload from before a restart claims to have more bytes than it has."""
    begin = SessionFile.__init__

    def begin_generously(self: SessionFile, path: Path, *rest: Any) -> None:
        begin(self, path, *rest)
        self.offset = -(-self.offset // OFFSET_STEP) * OFFSET_STEP

    replace(SessionFile, "__init__", begin_generously)


def unverified_fills() -> None:
    """Whatever an upstream sent is published under the digest that was asked for."""

    def verify(self: Any, identifier: str, session: Any, digest: Digest) -> None:
        session.file.digest(digest.algorithm)

    replace(LocalUploads, "_verify", verify)


def nothing_withheld() -> None:
    """Readers of a fill get the last bytes before the digest is verified."""
    for module in (fill, readers):
        replace(module, "WITHHELD_BYTES", 0)


def spools_stay() -> None:
    """A fill that fails leaves what it brought."""

    async def drop(self: Spool) -> None:
        await self.settle()

    replace(Spool, "drop", drop)


def no_budget() -> None:
    """A cache lets everybody in."""

    async def lacking(*_: Any) -> int:
        return 0

    replace(space.Space, "_lacking", lacking)


def forgotten_pins() -> None:
    """A pinned image leaves a cache as any other."""
    plan = evict.plan_eviction
    walk = eviction._doom

    def unpinned(images: Any, *rest: Any) -> Any:
        return plan([dataclasses.replace(image, pinned=False) for image in images], *rest)

    def doom(connection: sqlite3.Connection, *rest: Any) -> Any:
        connection.execute("UPDATE cached_tags SET pinned = 0")
        return walk(connection, *rest)

    replace(space, "plan_eviction", unpinned)
    replace(eviction, "_doom", doom)


def stale_manifests() -> None:
    """Nobody tells the manifests in memory that a tag has moved."""
    replace(Changes, "notify", lambda *_: None)


DEFECTS: Mapping[str, Callable[[], None]] = {
    seed.__name__.replace("_", "-"): seed
    for seed in (
        no_file_fsync,
        late_file_fsync,
        no_directory_fsync,
        no_index_fsync,
        early_acknowledgement,
        no_digest_check,
        row_before_file,
        false_offset,
        unverified_fills,
        nothing_withheld,
        spools_stay,
        no_budget,
        forgotten_pins,
        stale_manifests,
    )
}


if __name__ == "__main__":
    DEFECTS[sys.argv.pop(1)]()
    print(f"seeded server, process {os.getpid()}", file=sys.stderr)
    main()

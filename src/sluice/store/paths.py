"""Where everything lies in a data directory, and how the directory comes to be.

``LocalStore.open`` prepares the directory once; afterwards the modules of the store ask a ``Paths`` for names and
nothing else builds one. Every shard directory exists and is durable before the first blob comes, so that committing
a blob needs the fsync of one directory only.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from sluice.errors import DataDirectoryTooNew, StoreDamaged
from sluice.oci.digest import HEX_LENGTH, Digest

FORMAT_VERSION = 1
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
SHARDS = tuple(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True)
class Paths:
    """The names inside one data directory ``data``."""

    data: Path

    @property
    def lock(self) -> Path:
        """Locked for as long as a process uses the directory; holds its PID."""
        return self.data / "sluice.lock"

    @property
    def version(self) -> Path:
        """The format's version as a decimal number and a newline."""
        return self.data / "VERSION"

    @property
    def index(self) -> Path:
        """The SQLite file of ``store.index``."""
        return self.data / "index.sqlite"

    @property
    def contents(self) -> Path:
        """Content-addressed files: ``<algorithm>/<first 2 hex digits>/<hex>``."""
        return self.data / "content"

    @property
    def uploads(self) -> Path:
        """What is not content yet: bytes in ``<id>``, what they are for in ``<id>.json``."""
        return self.data / "uploads"

    @property
    def quarantine(self) -> Path:
        """Damaged and stray files that a repair took out of service."""
        return self.data / "quarantine"

    def content(self, digest: Digest) -> Path:
        """The file that holds the bytes of ``digest``."""
        return self.contents / digest.algorithm / digest.hex[:2] / digest.hex


def prepare(data: Path) -> Paths:
    """Make what is missing of the data directory, durably; raises DataDirectoryTooNew or StoreDamaged.

    The caller holds the directory's lock.
    """
    paths = Paths(data)
    known = _read_version(paths)
    for directory in (paths.contents, paths.uploads, paths.quarantine):
        _make(directory)
    for algorithm in HEX_LENGTH:
        _make_shards(paths.contents / algorithm)
    if not known:
        fsync_directory(paths.contents)
        # Last, so that its presence says that all of the above is durable.
        write_durably(paths.version, f"{FORMAT_VERSION}\n".encode())
    return paths


def make_data_directory(data: Path) -> None:
    """Make the data directory itself, with its parents, durably."""
    if data.is_dir():
        return
    data.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    fsync_directory(data.parent)


def fsync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: at any instant a crash leaves the old file or the new one."""
    staged = path.with_name(path.name + ".new")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    fsync_directory(path.parent)


def _read_version(paths: Paths) -> bool:
    """True where the directory has our version; False where it has none yet."""
    try:
        text = paths.version.read_bytes()
    except FileNotFoundError:
        return False
    if not text.strip().isdigit():
        raise StoreDamaged(f"{paths.version} holds {text[:40]!r}, not a format version: restore it from a backup")
    version = int(text)
    if version > FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"data directory {paths.data} has format version {version}, this Sluice knows up to {FORMAT_VERSION}:"
            " start the newer Sluice that wrote it, or name another directory"
        )
    return True


def _make_shards(directory: Path) -> None:
    _make(directory)
    present = set(os.listdir(directory))
    missing = [directory / shard for shard in SHARDS if shard not in present]
    for shard in missing:
        _make(shard)
    if missing:
        # Each shard is made in the same journal transaction as its name, so this one fsync covers all of them; every
        # commit of content fsyncs its shard again.
        fsync_directory(directory)


def _make(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=DIRECTORY_MODE)

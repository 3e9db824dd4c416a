"""What is found on a node's disk: the facts from which ``plan`` decides. Reads, and changes nothing.

``plan`` says which paths matter (``Watched``); ``look`` reads them without following a symbolic link at the last place,
since a link that is replaced by a file is no longer what its owner made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILE_BYTES_MAX = 4 << 20
"""More is no file that a runtime's configuration is read from; it is not read, and counts as odd."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A regular file: whole content, permission bits, owner, and time of change in nanoseconds (None: now)."""

    content: bytes = field(repr=False)
    mode: int
    uid: int
    gid: int
    mtime_ns: int | None = None

    def same_as(self, other: FileState) -> bool:
        """Whether content, mode and owner agree; the time does not count."""
        return (self.content, self.mode, self.uid, self.gid) == (other.content, other.mode, other.uid, other.gid)


@dataclass(frozen=True, slots=True)
class Watched:
    """The paths that a plan depends on; ``listed`` are the directories whose entries matter."""

    files: frozenset[str]
    directories: frozenset[str]
    listed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What is there. ``files``: regular ones, None where there is nothing. ``directories``: their entries as far as
    they matter, None where there is none. ``odd``: what else stands at a watched name, in words. ``owner``: of what we
    write."""

    files: Mapping[str, FileState | None]
    directories: Mapping[str, frozenset[str] | None]
    odd: Mapping[str, str]
    owner: tuple[int, int]


def look(watched: Watched) -> Found:
    """Read all of it. Raises OSError only where the system refuses what root may do."""
    files: dict[str, FileState | None] = {}
    directories: dict[str, frozenset[str] | None] = {}
    odd: dict[str, str] = {}
    for path in watched.files:
        state = read_state(path)
        if isinstance(state, str):
            odd[path] = state
        else:
            files[path] = state
    for path in watched.directories | watched.listed:
        if os.path.isdir(path):
            directories[path] = frozenset(os.listdir(path) if path in watched.listed else ())
        else:
            directories[path] = None
            if os.path.lexists(path):
                odd[path] = _kind(os.lstat(path).st_mode)
    return Found(files, directories, odd, (os.geteuid(), os.getegid()))


def read_state(path: str) -> FileState | str | None:
    """A file's state, None where there is nothing, or in words what else is there."""
    try:
        kind = os.lstat(path).st_mode
        if not stat.S_ISREG(kind):
            return _kind(kind)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_size > FILE_BYTES_MAX:
            return f"a file of more than {FILE_BYTES_MAX} bytes"
        content = file.read(FILE_BYTES_MAX + 1)
    return FileState(content, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_mtime_ns)


def ancestors(paths: Iterable[str]) -> set[str]:
    """Every directory above these paths, the root left out."""
    found: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def nearest_directory(path: str) -> Path:
    """The deepest directory above ``path`` that exists."""
    above = Path(path).parent
    while not above.is_dir() and above != above.parent:
        above = above.parent
    return above


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"

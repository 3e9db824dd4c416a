"""A directory tree as it stands: everything that ``undo`` promises to bring back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

Fact = tuple[object, ...]


def snapshot(root: Path) -> dict[str, Fact]:
    """Kind, mode, owner, and of files content and time, of links their target; by path below ``root``."""
    return {str(path.relative_to(root)): _fact(path) for path in sorted(root.rglob("*"))}


def _fact(path: Path) -> Fact:
    facts = path.lstat()
    owned = (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)
    if stat.S_ISLNK(facts.st_mode):
        return ("link", os.readlink(path), *owned)
    if stat.S_ISDIR(facts.st_mode):
        return ("directory", *owned)
    if not stat.S_ISREG(facts.st_mode):
        return ("other", *owned)
    return ("file", path.read_bytes(), facts.st_mtime_ns, *owned)


def put(path: Path, content: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None) -> Path:
    """A file with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if owner is not None:
        os.chown(path, *owner)
    path.chmod(mode)
    return path

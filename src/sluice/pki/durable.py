"""Small private files that are whole or absent: keys, certificates and the list of users.

Lowest part of ``pki``; ``authority`` and ``material`` keep keys through it, ``server.users`` and ``server.tokens``
their documents. A file appears under its name only once its bytes and then its directory entry are on disk, so that
a power cut leaves the old content or the new, never half a key. Nothing here is for bulk data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from sluice.config.reading import read_named
from sluice.errors import ConfigInvalid, SluiceError, StorageFull

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700


def write_durably(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replace ``path`` by ``content`` at one instant; it is on disk on return. Raises StorageFull or ConfigInvalid."""
    with errors_named(path, "written"), _written_aside(path, content, mode) as aside:
        aside.rename(path)
        sync_directory(path.parent)


def create_durably(path: Path, content: bytes, *, mode: int = PRIVATE_MODE) -> bool:
    """Like ``write_durably``, but never replaces: False where ``path`` exists already. Raises the same errors."""
    with errors_named(path, "written"), _written_aside(path, content, mode) as aside:
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            return False
        aside.unlink()
        sync_directory(path.parent)
        return True


def read_bounded(path: Path, bytes_max: int, *, pipe_s: float = 0) -> bytes | None:
    """The content, or None where there is no such file. Raises ConfigInvalid when unreadable or over ``bytes_max``.

    ``pipe_s`` is for what a person names, and may be a pipe (``read_named``).
    """
    with errors_named(path, "read"):
        try:
            content = read_named(path, bytes_max, pipe_s=pipe_s)
        except FileNotFoundError:
            return None
    if len(content) > bytes_max:
        raise ConfigInvalid(
            f"{path} has more than {bytes_max} bytes; it is no file that Sluice wrote: put the right one there"
        )
    return content


def make_directory(path: Path) -> None:
    """Create ``path`` and its missing parents, for the owner alone. Raises StorageFull or ConfigInvalid."""
    with errors_named(path, "created"):
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


@contextlib.contextmanager
def _written_aside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # the umask may have taken bits that a public file needs
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def remove_torn(directory: Path, names: Iterable[str]) -> None:
    """What processes left that were killed while they wrote these; nobody is to be writing them now."""
    for name in names:
        for torn in directory.glob(f".{name}.*.tmp"):
            torn.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """The names in ``directory`` are on disk on return. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def errors_named(path: Path, verb: str) -> Iterator[None]:
    """Turn what the system refuses about ``path`` into StorageFull or ConfigInvalid, with the remedy."""
    try:
        yield
    except OSError as error:
        raise _named(path, verb, error) from error


_NO_ACCESS = "give the account that runs Sluice access to it"
_A_FILE = "a directory is needed where there is a file or a link to nothing: move that away, or name another path"
_REMEDIES = {
    errno.ENOTDIR: _A_FILE,
    errno.EEXIST: _A_FILE,
    errno.EISDIR: "it is a directory: name a file",
    errno.ENOENT: "its directory does not exist: make it, or name another path",
    errno.ELOOP: "its links lead in a circle: mend them, or name another path",
    errno.ENAMETOOLONG: "name a shorter path",
}


def _named(path: Path, verb: str, error: OSError) -> SluiceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path} cannot be {verb}: no space is left on its file system; free some and try again")
    if error.errno == errno.EROFS:
        return ConfigInvalid(f"{path} cannot be {verb}: Read-only file system; mount it writable")
    reason = error.strerror or str(error)
    return ConfigInvalid(f"{path} cannot be {verb}: {reason}; {_REMEDIES.get(error.errno or 0, _NO_ACCESS)}")

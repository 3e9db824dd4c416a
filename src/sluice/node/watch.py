"""Which directories an agent has the kernel watch, so that it need not look at its files all the time.

Below the bell that the agent sleeps by. A file that is replaced as a whole shows in its directory only, so it is
directories that are watched: the file's, and the one in which it is found where its name is a symbolic link (a mounted
ConfigMap). What the kernel does not tell (``inotify(7)``: a mount over a directory, another machine's write to a
network file system) is for the agent's next look.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from inotify_simple import INotify, flags

_CHANGES = (
    flags.CLOSE_WRITE
    | flags.CREATE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
EVENTS_MAX = 65536  # bytes taken off the queue at once; the kernel bounds the queue itself


class DirectoryWatch:
    """``fileno`` is readable when something may have changed. Where the kernel has no room for it there is none."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._watched: frozenset[int] = frozenset()

    @property
    def descriptor(self) -> int | None:
        """To be polled; None while nothing is watched."""
        return None if self._inotify is None else self._inotify.fileno()

    def follow(self, files: Iterable[Path]) -> bool:
        """Watch the directories of these files, and no others.

        Returns whether all of them were watched before already: whether a change since the last call would have shown.
        """
        try:
            watched = frozenset(map(self._add, _directories(files)))
        except OSError:  # no such directory, or no instance or watch is left for this user (fs.inotify)
            return False
        before, self._watched = self._watched, watched
        for gone in before - watched:
            self._remove(gone)
        if before != watched:
            self.drain()  # the end of a watch shows, too; the caller is to look at everything now
        return before == watched

    def drain(self) -> None:
        """Forget what has shown; the files themselves say what there is."""
        if self._inotify is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._inotify.fileno(), EVENTS_MAX)

    def close(self) -> None:
        """Watch nothing any more."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._watched = None, frozenset()

    def _add(self, directory: Path) -> int:
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
        number: int = self._inotify.add_watch(directory, _CHANGES)
        return number

    def _remove(self, number: int) -> None:
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # the directory is gone, and the watch with it
                self._inotify.rm_watch(number)


def _directories(files: Iterable[Path]) -> set[Path]:
    names = (name for file in files for name in (file.absolute(), Path(os.path.realpath(file))))
    return {name.parent for name in names}

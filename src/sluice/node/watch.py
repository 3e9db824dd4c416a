"""Which names in which directories an agent has the kernel watch, so that it need not look at its files all the time.

Below the bell that the agent sleeps by. A file that is replaced as a whole shows in its directory only, so directories
are watched, and of what happens there, the names that count: the file's, and that of each symbolic link on the way to
it (a mounted ConfigMap, a ``current`` release). Where the way ends, it is the name that is missing. What the kernel
does not tell (``inotify(7)``: a mount over a directory, another machine's write to a network file system), and another
name for a directory further up, is for the agent's next look.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from inotify_simple import INotify, flags, parse_events

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
_OF_NO_NAME = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
EVENTS_BYTES = 65536
"""Read at once, again and again until the queue is empty, which the kernel bounds (fs.inotify.max_queued_events)."""
LINKS_MAX = 40
"""On the way to one file, as in the kernel (``path_resolution(7)``)."""


class DirectoryWatch:
    """For one sleeper, who polls ``descriptor``, and asks ``drain`` whether what showed is a change."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._names: dict[int, set[str]] = {}

    @property
    def descriptor(self) -> int | None:
        """Readable when something has happened; None as long as the kernel has had no room for one."""
        return None if self._inotify is None else self._inotify.fileno()

    def follow(self, files: Iterable[Path]) -> bool:
        """Watch for changes of these files, and no others.

        Returns whether they were followed so before: whether a change since the last call would have shown.
        """
        before, self._names, whole = self._names, {}, True
        try:
            for directory, name in {place for file in files for place in _places(file)}:
                self._names.setdefault(self._add(directory), set()).add(name)
        except OSError:  # a directory that has just gone, or no instance or watch is left for this user (fs.inotify)
            whole = False
        for gone in before.keys() - self._names.keys():
            self._remove(gone)
        return whole and before == self._names

    def drain(self) -> bool:
        """Forget what has shown; returns whether a change of a file was among it."""
        changed = False
        while events := self._read():
            changed = changed or any(map(self._counts, events))
        return changed

    def close(self) -> None:
        """Watch nothing any more."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._names = None, {}

    def _add(self, directory: str) -> int:
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
        number: int = self._inotify.add_watch(directory, _CHANGES)
        return number

    def _remove(self, number: int) -> None:
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # the directory is gone, and the watch with it
                self._inotify.rm_watch(number)

    def _read(self) -> list[tuple[int, int, int, str]]:
        if self._inotify is None:
            return []
        try:
            return list(parse_events(os.read(self._inotify.fileno(), EVENTS_BYTES)))
        except BlockingIOError:
            return []

    def _counts(self, event: tuple[int, int, int, str]) -> bool:
        number, mask, _, name = event
        if mask & flags.Q_OVERFLOW:
            return True
        names = self._names.get(number)
        return names is not None and (name in names or bool(mask & _OF_NO_NAME))


def _places(file: Path) -> Iterator[tuple[str, str]]:
    """Each directory, by a path without links, and the name in it whose change makes ``file`` another one."""
    here, rest, links = "/", list(reversed(file.absolute().parts[1:])), 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        place = os.path.join(here, name)
        try:
            is_link = stat.S_ISLNK(os.lstat(place).st_mode)
            target = os.readlink(place) if is_link else ""
        except OSError:  # whatever comes there, comes by this name
            yield here, name
            return
        if is_link or not rest:
            yield here, name
        if not is_link:
            here = place
            continue
        links += 1
        if links > LINKS_MAX:
            return
        here = "/" if target.startswith("/") else here
        rest.extend(part for part in reversed(target.split("/")) if part not in {"", "."})

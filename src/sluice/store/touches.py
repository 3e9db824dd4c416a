"""Interest in content that is not worth a disk write each: the last HEAD, mount check or pull by a writer.

A client that pushes asks first whether a blob is there (HEAD), and on "yes" sends only the manifest. Garbage
collection must not remove the blob in between. Writing ``touched_at`` on each HEAD would cost an fsync, so touches wait
in memory and are flushed to the index within a second, and garbage collection takes part in this protocol:

* A writer's HEAD calls ``touch`` **first** and looks the blob up **after**. ``False`` means "answer as if it were not
  held"; the client then sends the blob, which is always safe.
* Garbage collection works inside one index change, that is in the index's writer thread: it calls ``flush``, picks its
  victims, calls ``block(victims)``, spares those that come back, deletes the others; after the commit it tells
  ``store.events`` and calls ``unblock(victims)``, in a ``finally``, with ``restore`` of the flushed touches where the
  change failed.
* ``flush`` is called inside an index change only. Taken outside, touches would for a moment be neither here nor in the
  index.

So a touch came before ``flush`` (victims are chosen with it in the index), or between ``flush`` and ``block`` (spared),
or while blocked (``False``), or after the commit (the look-up finds nothing). Keys are ``(repository, digest text)``.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable

Key = tuple[str, str]

TOUCHES_MAX = 100_000  # keys waiting; further ones answer False, which costs the client an upload and nothing else

_FLUSH = """
UPDATE {table} SET touched_at = max(touched_at, ?)
WHERE repository = (SELECT id FROM repositories WHERE name = ?) AND digest = ?
"""


class Touches:
    """Touches on their way to the index. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Key, float] = {}
        self._blocked: set[Key] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def touch(self, repository: str, digest: str, now: float) -> bool:
        """Record interest at ``now`` (seconds since the epoch). False: treat the content as not held."""
        key = (repository, digest)
        with self._lock:
            if key in self._blocked or (len(self._waiting) >= TOUCHES_MAX and key not in self._waiting):
                return False
            self._waiting[key] = now
            return True

    def use(self, repository: str, digest: str, now: float) -> bool:
        """``touch`` for a reader through a cache. False: it is being evicted just now, treat it as not held. Where too
        many wait the use is not recorded: reading goes on all the same."""
        return self.touch(repository, digest, now) or (repository, digest) not in self._blocked

    def take(self) -> dict[Key, float]:
        """Hand over everything that waits."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
            return taken

    def restore(self, taken: dict[Key, float]) -> None:
        """Give back what ``take`` handed over and no commit has kept."""
        with self._lock:
            self._waiting = {**taken, **self._waiting}

    def block(self, keys: Iterable[Key]) -> set[Key]:
        """Refuse touches of ``keys`` from here on, except those touched since ``take``: they come back, spared."""
        with self._lock:
            wanted = set(keys)
            spared = {key for key in wanted if key in self._waiting}
            self._blocked |= wanted - spared
            return spared

    def unblock(self, keys: Iterable[Key]) -> None:
        """Let touches of ``keys`` through again."""
        with self._lock:
            self._blocked.difference_update(keys)


def flush(connection: sqlite3.Connection, touches: Touches) -> dict[Key, float]:
    """Move all touches into the index; inside an index change only. Returns them, for ``restore`` where the commit
    fails; where this itself fails they are back already."""
    taken = touches.take()
    rows = [(at, repository, digest) for (repository, digest), at in taken.items()]
    try:
        for table in ("links", "manifests"):
            connection.executemany(_FLUSH.format(table=table), rows)
    except sqlite3.Error:
        touches.restore(taken)
        raise
    return taken

"""Taking an image out of a cache, as a whole, beside pulls and fills.

Which images go is decided elsewhere, on a snapshot (``store.images``). ``evict`` decides again inside one index change:
an image that was used, named, pinned, protected or opened since then stays. With it go its tags, its manifests and
links that no other image of the repository needs, and the rows of contents that no repository has any more. Their files
are unlinked at once, unless somebody still reads them: a reader takes its lease before it looks (``store.leases``), so
one without a lease finds no row. A fill that brings the content back meanwhile enters its row under the digest's
``content_lock``, and the file stays.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial

from sluice.errors import TooManyRequests
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store import condemned
from sluice.store.changes import repository_id
from sluice.store.gc import unlink_file
from sluice.store.images import HeldImage, is_protected
from sluice.store.local import LocalStore
from sluice.store.touches import Key, flush

PROTECTED_MAX = 100_000  # references
OUTAGES_MAX = 1000  # remembered of each upstream
NEVER_RAN = "*"
"""Stands for all upstreams in an outage: no cache ran."""

_PARENTS = "SELECT parent FROM edges WHERE repository = ? AND child = ? AND kind = 'manifest'"
_CHILDREN = """
SELECT e.child FROM edges AS e JOIN manifests AS m ON m.repository = e.repository AND m.digest = e.child
WHERE e.repository = ? AND e.parent = ? AND e.kind = 'manifest' AND m.partial
AND NOT EXISTS (SELECT 1 FROM tags AS t WHERE t.repository = e.repository AND t.digest = e.child)
"""
_NAMED = """
SELECT e.child, l.touched_at FROM edges AS e LEFT JOIN links AS l ON l.repository = e.repository AND l.digest = e.child
WHERE e.repository = ? AND e.parent = ? AND (e.kind = 'blob' OR NOT EXISTS
(SELECT 1 FROM manifests AS m WHERE m.repository = e.repository AND m.digest = e.child))
"""
_NAMING = "SELECT parent FROM edges WHERE repository = ? AND child = ?"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SpaceTotals:
    """``held`` bytes of contents, ``condemned`` bytes of files that are not unlinked yet; what was evicted so far;
    when a cache last watched over it, in seconds since the epoch, 0 for never."""

    held: int
    condemned: int
    evicted_images: int
    evicted_bytes: int
    swept_at: int


@dataclass(frozen=True, slots=True)
class Outage:
    """A time for which an upstream could not be asked, in seconds since the epoch."""

    began_at: float
    ended_at: float


@dataclass(slots=True)
class _Doomed:
    """What goes with an image: rows of its repository. ``coming``: what only these name, and is not held.
    ``used_at``: when the last of it was used."""

    manifests: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    coming: set[str] = field(default_factory=set)
    used_at: float = 0.0


def read_totals(connection: sqlite3.Connection) -> SpaceTotals:
    """How much there is. Scans nothing but what is condemned."""
    counts = dict(connection.execute("SELECT name, value FROM totals"))
    waiting = condemned.waiting_bytes(connection)
    return SpaceTotals(counts["bytes"], waiting, counts["evicted_images"], counts["evicted_bytes"], counts["swept_at"])


def evict(store: LocalStore, image: HeldImage, *, unused: bool = True) -> int | None:
    """Take the image out; returns the bytes of contents that went with it, None where it has to stay. ``unused``: it
    has to stay where it was used since it was looked at. Blocks."""
    change = _Eviction(store, image, unused)
    try:
        gone = store.index.write_blocking(change.run)
        if gone is not None:
            store.events.notify(Repository(image.repository))
    except BaseException:
        store.touches.restore(change.taken)
        raise
    finally:
        store.touches.unblock(change.blocked)
    if gone is None:
        return None
    unlink_unread(store, gone)
    return sum(gone.values())


def unlink_unread(store: LocalStore, digests: AbstractSet[str] | Iterable[str] | None = None) -> None:
    """Unlink those of ``digests``, or all, that are condemned and that nobody reads. What cannot be unlinked waits for
    the next time. Blocks."""
    wanted = None if digests is None else set(digests)
    for page in condemned.pages(store.index, float("inf")):
        done = [row for row in page if (wanted is None or row[0] in wanted) and _unlink(store, *row)]
        if done:
            store.index.write_blocking(partial(condemned.absolve, rows=done))


def protect(connection: sqlite3.Connection, references: Sequence[str]) -> None:
    """Keep these and no others from being evicted. An index change. Raises TooManyRequests beyond ``PROTECTED_MAX``."""
    if len(references) > PROTECTED_MAX:
        raise TooManyRequests(f"{len(references)} references are to be protected, {PROTECTED_MAX} can be: name fewer")
    connection.execute("DELETE FROM protected")
    connection.executemany("INSERT OR IGNORE INTO protected VALUES (?)", [(one,) for one in references])


def note_sweep(connection: sqlite3.Connection, now: float, silent: Iterable[str], interval_s: float) -> None:
    """A cache runs at ``now``, and these upstreams cannot be asked. What lies more than twice ``interval_s`` back was
    not watched: an outage goes on, or none ran at all. An index change."""
    swept_at = read_totals(connection).swept_at
    if swept_at and now - swept_at > 2 * interval_s:
        _enter_outage(connection, NEVER_RAN, swept_at, now)
    connection.execute("UPDATE totals SET value = ? WHERE name = 'swept_at'", (int(now),))
    for upstream in silent:
        query = "SELECT max(began_at), ended_at FROM outages WHERE upstream = ?"
        last = connection.execute(query, (upstream,)).fetchone()
        if last[0] is not None and now - last[1] <= 2 * interval_s:
            key = (now, upstream, last[0])
            connection.execute("UPDATE outages SET ended_at = ? WHERE upstream = ? AND began_at = ?", key)
        else:
            _enter_outage(connection, upstream, now, now)


def find_outages(connection: sqlite3.Connection) -> dict[str, list[Outage]]:
    """All that are remembered, by upstream."""
    found: dict[str, list[Outage]] = {}
    for upstream, began_at, ended_at in connection.execute("SELECT * FROM outages ORDER BY upstream, began_at"):
        found.setdefault(upstream, []).append(Outage(began_at, ended_at))
    return found


class _Eviction:
    """One image on its way through the protocol of ``store.touches``. ``run`` is an index change."""

    def __init__(self, store: LocalStore, image: HeldImage, unused: bool) -> None:
        self._store = store
        self._image = image
        self._unused = unused
        self.taken: dict[Key, float] = {}
        self.blocked: set[Key] = set()

    def run(self, connection: sqlite3.Connection) -> dict[str, int] | None:
        """The sizes of the contents that went, by digest."""
        store, image = self._store, self._image
        self.taken = flush(connection, store.touches)
        self.blocked = {(image.repository, digest) for digest in image.digests}
        spared = store.touches.block(self.blocked)
        number = repository_id(connection, Repository(image.repository))
        doomed = None if number is None else _doom(connection, number, image)
        if number is None or doomed is None or (self._unused and doomed.used_at > image.used_at):
            return None
        going = doomed.manifests | doomed.links | doomed.coming
        uses = spared | store.leases.uses()
        if any((image.repository, digest) in uses for digest in going):
            return None
        if not image.blob:
            _drop_tags(connection, number, image.digest)
        _drop_rows(connection, number, doomed)
        return _condemn(connection, doomed, store.clock())


def _doom(connection: sqlite3.Connection, number: int, image: HeldImage) -> _Doomed | None:
    """What would go now with the image; None where it is not what it was."""
    key = (number, image.digest)
    protected = frozenset(row[0] for row in connection.execute("SELECT reference FROM protected"))
    if is_protected(image.repository, image.tags, image.digests, protected):
        return None
    if image.blob:
        touched = connection.execute("SELECT touched_at FROM links WHERE repository = ? AND digest = ?", key).fetchone()
        if touched is None or connection.execute(_NAMING, key).fetchone() is not None:
            return None
        return _Doomed(links={image.digest}, used_at=touched[0])
    row = connection.execute("SELECT partial FROM manifests WHERE repository = ? AND digest = ?", key).fetchone()
    tags = connection.execute(
        "SELECT t.name, c.pinned FROM tags AS t LEFT JOIN cached_tags AS c"
        " ON c.repository = t.repository AND c.name = t.name WHERE t.repository = ? AND t.digest = ?",
        key,
    ).fetchall()
    if row is None or not row[0] or any(pinned or name not in image.tags for name, pinned in tags):
        return None
    return _walk(connection, number, image.digest)


def _walk(connection: sqlite3.Connection, number: int, root: str) -> _Doomed:
    """From a root down: manifests whose every parent goes too, then blobs that only these name."""
    touched = "SELECT touched_at FROM manifests WHERE repository = ? AND digest = ?"
    doomed = _Doomed(used_at=connection.execute(touched, (number, root)).fetchone()[0])
    frontier = [root]
    while frontier:
        digest = frontier.pop()
        parents = {row[0] for row in connection.execute(_PARENTS, (number, digest))}
        if digest not in doomed.manifests and parents <= doomed.manifests:
            doomed.manifests.add(digest)
            frontier += [row[0] for row in connection.execute(_CHILDREN, (number, digest))]
    for digest in doomed.manifests:
        doomed.used_at = max(doomed.used_at, connection.execute(touched, (number, digest)).fetchone()[0])
        for child, touched_at in connection.execute(_NAMED, (number, digest)).fetchall():
            if {row[0] for row in connection.execute(_NAMING, (number, child))} <= doomed.manifests:
                (doomed.coming if touched_at is None else doomed.links).add(child)
                doomed.used_at = max(doomed.used_at, touched_at or 0.0)
    return doomed


def _drop_tags(connection: sqlite3.Connection, number: int, digest: str) -> None:
    """With their history: what a cache has forgotten about a tag, nobody can ask."""
    names = connection.execute("SELECT name FROM tags WHERE repository = ? AND digest = ?", (number, digest)).fetchall()
    rows = [(number, name) for (name,) in names]
    connection.executemany("DELETE FROM tags WHERE repository = ? AND name = ?", rows)
    connection.executemany("DELETE FROM cached_tags WHERE repository = ? AND name = ?", rows)
    connection.executemany("DELETE FROM tag_history WHERE repository = ? AND tag = ?", rows)


def _drop_rows(connection: sqlite3.Connection, number: int, doomed: _Doomed) -> None:
    manifests = [(number, digest) for digest in doomed.manifests]
    connection.executemany("DELETE FROM edges WHERE repository = ? AND parent = ?", manifests)
    connection.executemany("DELETE FROM manifests WHERE repository = ? AND digest = ?", manifests)
    links = [(number, digest) for digest in doomed.links]
    connection.executemany("DELETE FROM links WHERE repository = ? AND digest = ?", links)


def _condemn(connection: sqlite3.Connection, doomed: _Doomed, now: float) -> dict[str, int]:
    digests = sorted(doomed.manifests | doomed.links)
    gone = condemned.condemn(connection, digests, now)
    counts = {"evicted_images": 1, "evicted_bytes": sum(gone.values())}
    for name, count in counts.items():
        connection.execute("UPDATE totals SET value = value + ? WHERE name = ?", (count, name))
    return gone


def _unlink(store: LocalStore, digest: str, condemned_at: float) -> bool:
    """Whether the condemnation is dealt with."""
    if digest in store.leases.digests():
        return False
    try:
        unlink_file(store, Digest.parse(digest), condemned_at)
    except OSError as error:
        _log.error("content %s cannot be unlinked, it is tried again later: %s", digest, error)
        return False
    return True


def _enter_outage(connection: sqlite3.Connection, upstream: str, began_at: float, ended_at: float) -> None:
    connection.execute("INSERT OR REPLACE INTO outages VALUES (?, ?, ?)", (upstream, began_at, ended_at))
    connection.execute(
        "DELETE FROM outages WHERE upstream = ?1 AND began_at <= (SELECT began_at FROM outages WHERE upstream = ?1"
        " ORDER BY began_at DESC LIMIT 1 OFFSET ?2)",
        (upstream, OUTAGES_MAX),
    )

"""The index against itself: rows that contradict each other, and the removal of content that is lost.

The part of ``store.scrub`` that needs no file. None of these contradictions can come from a crash, since each write is
one transaction; they come from damaged disks, restored backups and hands.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence

from sluice.store.reach import BATCH_ROWS, chunks

_NAME = "coalesce((SELECT name FROM repositories WHERE id = repository), 'repository ' || repository)"
_UNBACKED = "NOT EXISTS (SELECT 1 FROM contents AS c WHERE c.digest = x.digest)"
_BACKLESS_LINKS = f"SELECT {_NAME}, x.digest FROM links AS x WHERE {_UNBACKED}"  # noqa: S608 - literals of this module
_BACKLESS_MANIFESTS = f"SELECT {_NAME}, x.digest FROM manifests AS x WHERE {_UNBACKED}"  # noqa: S608 - as above
_NO_PARENT = """
NOT EXISTS (SELECT 1 FROM manifests AS m WHERE m.repository = edges.repository AND m.digest = edges.parent)
"""
_PARENTLESS = f"SELECT DISTINCT {_NAME}, parent FROM edges WHERE {_NO_PARENT}"  # noqa: S608 - as above
_HELD_AND_CONDEMNED = "SELECT digest FROM condemned WHERE digest IN (SELECT digest FROM contents)"
_MISNAMED = """
SELECT digest FROM contents WHERE substr(digest, 8) GLOB '*[^0-9a-f]*'
OR NOT (digest GLOB 'sha256:*' AND length(digest) = 71 OR digest GLOB 'sha512:*' AND length(digest) = 135)
"""
_TOTALS = """
SELECT t.name, t.value, c.value FROM totals AS t JOIN
(SELECT 'contents' AS name, count(*) AS value FROM contents
UNION ALL SELECT 'bytes', coalesce(sum(size), 0) FROM contents) AS c ON c.name = t.name WHERE t.value <> c.value
"""


def contents_page(connection: sqlite3.Connection, after: str) -> list[tuple[str, int]]:
    """Up to ``BATCH_ROWS`` contents after ``after`` in byte order, as digest and size in bytes."""
    query = "SELECT digest, size FROM contents WHERE digest > ? ORDER BY digest LIMIT ?"
    return connection.execute(query, (after, BATCH_ROWS)).fetchall()


def with_rows(connection: sqlite3.Connection, digests: str) -> set[str]:
    """Those of ``digests`` (a JSON array) that are held or condemned."""
    query = """
        SELECT digest FROM contents WHERE digest IN (SELECT value FROM json_each(?1))
        UNION SELECT digest FROM condemned WHERE digest IN (SELECT value FROM json_each(?1))
    """
    return {row[0] for row in connection.execute(query, (digests,))}


def repositories_with(connection: sqlite3.Connection, digest: str) -> set[str]:
    """The repositories that have a content, as a blob or as a manifest."""
    query = """
        SELECT name FROM repositories WHERE id IN
        (SELECT repository FROM links WHERE digest = ?1 UNION SELECT repository FROM manifests WHERE digest = ?1)
    """
    return {row[0] for row in connection.execute(query, (digest,))}


def quick_check(connection: sqlite3.Connection) -> tuple[str, ...]:
    """SQLite's own complaints about the file (``PRAGMA quick_check``), at most 100; none where it is sound."""
    return tuple(str(row[0]) for row in connection.execute("PRAGMA quick_check") if row[0] != "ok")


def contradictions(connection: sqlite3.Connection) -> Iterator[str]:
    """Each contradiction between rows as a sentence."""
    for query, text in (
        (_BACKLESS_LINKS, "blob {0}@{1} has no content row"),
        (_BACKLESS_MANIFESTS, "manifest {0}@{1} has no content row"),
        (_PARENTLESS, "edges of {0}@{1} have no manifest row"),
        (_MISNAMED, "content row {0!r} has no digest for its name"),
        (_HELD_AND_CONDEMNED, "content {0} is held and condemned"),
        (_TOTALS, "the total of {0} is {1}, counted are {2}"),
    ):
        for row in connection.execute(query):
            yield text.format(*row)


def reconcile(connection: sqlite3.Connection, now: float) -> set[str]:
    """Remove the contradictory rows; an index change. Returns the repositories that changed."""
    backless = {row[1] for query in (_BACKLESS_LINKS, _BACKLESS_MANIFESTS) for row in connection.execute(query)}
    backless |= {row[0] for row in connection.execute(_MISNAMED)}
    changed: set[str] = set()
    for chunk in chunks(sorted(backless)):
        changed |= forget(connection, chunk, now)
    connection.execute(f"DELETE FROM edges WHERE {_NO_PARENT}")  # noqa: S608 - as above
    connection.execute("DELETE FROM condemned WHERE digest IN (SELECT digest FROM contents)")
    for name, _, counted in connection.execute(_TOTALS).fetchall():
        connection.execute("UPDATE totals SET value = ? WHERE name = ?", (counted, name))
    return changed


def forget(connection: sqlite3.Connection, digests: Sequence[str], now: float) -> set[str]:
    """Remove every row of lost contents; an index change. Returns the repositories that had them.

    What a lost manifest held (its children and its referrers) counts as touched ``now``: garbage collection must not
    finish what the damage began before the manifest can be pushed again. Tags stay, pointing at what is to be pushed.
    """
    wanted = json.dumps(list(digests))
    lost = connection.execute(
        "SELECT repository, digest FROM manifests WHERE digest IN (SELECT value FROM json_each(?))", (wanted,)
    ).fetchall()
    named = f"SELECT DISTINCT {_NAME} FROM {{}} WHERE digest IN (SELECT value FROM json_each(?))"  # noqa: S608
    repositories = {
        str(row[0])
        for table in ("links", "manifests")
        for row in connection.execute(named.format(table), (wanted,)).fetchall()
    }
    for repository, manifest in lost:
        _touch_held(connection, repository, manifest, now)
    connection.executemany("DELETE FROM edges WHERE repository = ? AND parent = ?", lost)
    for table in ("manifests", "links", "contents"):
        connection.executemany(
            f"DELETE FROM {table} WHERE digest = ?",  # noqa: S608 - the table is one of three literals
            [(digest,) for digest in digests],
        )
    return repositories


def _touch_held(connection: sqlite3.Connection, repository: int, manifest: str, now: float) -> None:
    for table in ("links", "manifests"):
        connection.execute(
            f"UPDATE {table} SET touched_at = max(touched_at, ?1) WHERE repository = ?2"  # noqa: S608 - two literals
            " AND digest IN (SELECT child FROM edges WHERE repository = ?2 AND parent = ?3)",
            (now, repository, manifest),
        )
    connection.execute(
        "UPDATE manifests SET touched_at = max(touched_at, ?) WHERE repository = ? AND subject = ?",
        (now, repository, manifest),
    )

"""Contents that no repository has any more, from their rows' end to their files' end.

Row operations of the last two steps of ``store.gc``. Between the two a digest is *condemned*: it has a row in
``condemned`` and none in ``contents``. ``store.changes.hold_content`` lifts that. Digests are text here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from sluice.store.index import Index
from sluice.store.reach import BATCH_ROWS, chunks

_UNHELD = """
SELECT c.digest, c.size FROM contents AS c
WHERE NOT EXISTS (SELECT 1 FROM links AS l WHERE l.digest = c.digest)
AND NOT EXISTS (SELECT 1 FROM manifests AS m WHERE m.digest = c.digest)
"""
_UNHELD_PAGE = _UNHELD + "AND c.digest > ? ORDER BY c.digest LIMIT ?"
_AMONG_UNHELD = _UNHELD + "AND c.digest IN (SELECT value FROM json_each(?))"  # noqa: S608 - two literals
_ROWS_OF_CONTENTS = """
SELECT c.digest, c.size, (SELECT count(*) FROM links AS l WHERE l.digest = c.digest)
+ (SELECT count(*) FROM manifests AS m WHERE m.digest = c.digest)
FROM contents AS c WHERE c.digest IN (SELECT value FROM json_each(?))
"""
_PAGE_AFTER = (
    "SELECT digest, condemned_at FROM condemned WHERE condemned_at <= ? AND digest > ? ORDER BY digest LIMIT ?"
)
_STANDS = """
SELECT 1 FROM condemned WHERE digest = ?1 AND condemned_at = ?2
AND NOT EXISTS (SELECT 1 FROM contents WHERE digest = ?1)
"""


def unheld_page(connection: sqlite3.Connection, after: str) -> list[str]:
    """Up to ``BATCH_ROWS`` contents that no repository has, after ``after`` in byte order."""
    return [row[0] for row in connection.execute(_UNHELD_PAGE, (after, BATCH_ROWS))]


def sizes_left_unheld(connection: sqlite3.Connection, rows: Mapping[str, int]) -> list[int]:
    """Sizes in bytes of the contents that no repository has, or none would have once ``rows`` rows of each digest,
    links and manifests together, were gone."""
    sizes = [size for _, size in connection.execute(_UNHELD)]
    for chunk in chunks(rows):
        for digest, size, held in connection.execute(_ROWS_OF_CONTENTS, (json.dumps(chunk),)):
            if rows[digest] == held:
                sizes.append(size)
    return sizes


def condemn(connection: sqlite3.Connection, digests: Sequence[str], now: float) -> dict[str, int]:
    """Condemn those of ``digests`` that no repository has; returns these and their sizes in bytes. An index change."""
    gone: dict[str, int] = dict(connection.execute(_AMONG_UNHELD, (json.dumps(digests),)).fetchall())
    connection.executemany(
        "INSERT OR REPLACE INTO condemned(digest, condemned_at, size) VALUES (?, ?, ?)",
        [(digest, now, size) for digest, size in gone.items()],
    )
    connection.executemany("DELETE FROM contents WHERE digest = ?", [(digest,) for digest in gone])
    return gone


def pages(index: Index, due: float) -> Iterator[list[tuple[str, float]]]:
    """What was condemned at ``due`` or before, as digest and time, in pages of up to ``BATCH_ROWS``."""
    after = ""
    while page := index.read(partial(_page, due=due, after=after)):
        yield page
        after = page[-1][0]


def waiting_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the files that wait to be unlinked."""
    return int(connection.execute("SELECT coalesce(sum(size), 0) FROM condemned").fetchone()[0])


def stands(connection: sqlite3.Connection, digest: str, condemned_at: float) -> bool:
    """Whether this very condemnation has not been lifted. Certain while the caller holds the ``content_lock``."""
    return connection.execute(_STANDS, (digest, condemned_at)).fetchone() is not None


def absolve(connection: sqlite3.Connection, rows: Sequence[tuple[str, float]]) -> None:
    """These condemnations are dealt with. An index change."""
    connection.executemany("DELETE FROM condemned WHERE digest = ? AND condemned_at = ?", rows)


def _page(connection: sqlite3.Connection, due: float, after: str) -> list[tuple[str, float]]:
    return connection.execute(_PAGE_AFTER, (due, after, BATCH_ROWS)).fetchall()

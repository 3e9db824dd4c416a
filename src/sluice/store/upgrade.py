"""Index files of earlier versions, taken to the present schema when they are opened.

Each upgrade is one transaction, which a crash leaves done or undone. There is no way back: an earlier Sluice refuses
the file and says so.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from sluice.store.schema import CACHE_TABLES, SCHEMA_VERSION

_COLUMNS = (
    ("manifests", "partial", "INTEGER NOT NULL DEFAULT 0"),
    ("condemned", "size", "INTEGER NOT NULL DEFAULT 0"),  # of a file that is unlinked within the hour; nobody noted it
    ("links", "upstream", "TEXT"),
    ("manifests", "upstream", "TEXT"),
    ("cached_tags", "upstream", "TEXT"),
)

_log = logging.getLogger(__name__)


def upgrade(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Take the index from ``version``, which is below ``SCHEMA_VERSION``, to it. Raises sqlite3.Error where the file is
    not what its version says."""
    known = {table: _columns(connection, table) for table, _, _ in _COLUMNS}
    lacking = [
        f"ALTER TABLE {table} ADD COLUMN {column} {kind};"
        for table, column, kind in _COLUMNS
        if column not in known[table] and (known[table] or f"EXISTS {table} (" not in CACHE_TABLES)
    ]
    connection.executescript(
        f"BEGIN IMMEDIATE; {' '.join(lacking)} {CACHE_TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
    _log.info("%s: schema version %d is now %d", path, version, SCHEMA_VERSION)


def _columns(connection: sqlite3.Connection, table: str) -> frozenset[str]:
    return frozenset(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))

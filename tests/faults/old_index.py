"""Index files as earlier Sluices left them: each has less than the one after it, or calls itself an earlier version.

The tables are written down here as they were, so that they stay so whatever becomes of ``sluice.store.schema``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

APPLICATION_ID = 0x51C1CE01

REGISTRY = """
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE contents (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE links (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    digest TEXT NOT NULL REFERENCES contents(digest),
    touched_at REAL NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX links_digest ON links(digest);
CREATE TABLE manifests (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    digest TEXT NOT NULL REFERENCES contents(digest),
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    subject TEXT,
    artifact_type TEXT,
    annotations TEXT NOT NULL DEFAULT '{}',
    touched_at REAL NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX manifests_digest ON manifests(digest);
CREATE INDEX manifests_subject ON manifests(repository, subject) WHERE subject IS NOT NULL;
CREATE TABLE edges (
    repository INTEGER NOT NULL,
    parent TEXT NOT NULL,
    child TEXT NOT NULL,
    kind TEXT NOT NULL,
    required INTEGER NOT NULL,
    PRIMARY KEY (repository, parent, child, kind)
) WITHOUT ROWID;
CREATE INDEX edges_child ON edges(repository, child);
CREATE TABLE tags (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
CREATE INDEX tags_digest ON tags(repository, digest);
CREATE TABLE tag_history (
    id INTEGER PRIMARY KEY,
    repository INTEGER NOT NULL REFERENCES repositories(id),
    tag TEXT NOT NULL,
    digest TEXT,
    actor TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX tag_history_tag ON tag_history(repository, tag, id);
CREATE TABLE condemned (
    digest TEXT PRIMARY KEY,
    condemned_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE totals (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO totals VALUES ('contents', 0), ('bytes', 0);
CREATE TRIGGER contents_added AFTER INSERT ON contents BEGIN
    UPDATE totals SET value = value + 1 WHERE name = 'contents';
    UPDATE totals SET value = value + NEW.size WHERE name = 'bytes';
END;
CREATE TRIGGER contents_removed AFTER DELETE ON contents BEGIN
    UPDATE totals SET value = value - 1 WHERE name = 'contents';
    UPDATE totals SET value = value - OLD.size WHERE name = 'bytes';
END;
"""

CACHE = (
    REGISTRY.replace(
        "    touched_at REAL NOT NULL,\n    PRIMARY KEY (repository, digest)\n) WITHOUT ROWID;\nCREATE INDEX manifests",
        "    touched_at REAL NOT NULL,\n    partial INTEGER NOT NULL DEFAULT 0,\n    PRIMARY KEY (repository, digest)\n"
        ") WITHOUT ROWID;\nCREATE INDEX manifests",
        1,
    )
    + """
CREATE TABLE cached_tags (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    checked_at REAL NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
"""
)

SPACE = (
    CACHE.replace(
        "    condemned_at REAL NOT NULL\n", "    condemned_at REAL NOT NULL,\n    size INTEGER NOT NULL DEFAULT 0\n"
    )
    + """
CREATE TABLE protected (
    reference TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE outages (
    upstream TEXT NOT NULL,
    began_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    PRIMARY KEY (upstream, began_at)
) WITHOUT ROWID;
INSERT INTO totals VALUES ('evicted_images', 0), ('evicted_bytes', 0), ('swept_at', 0);
"""
)

FORMS = {"registry": REGISTRY, "cache": CACHE, "space": SPACE, "numbered": SPACE}
VERSIONS = {"registry": 1, "cache": 1, "space": 1, "numbered": 2}


def take_back(path: Path, form: str) -> None:
    """Make the index at ``path``, which nobody has open, one of an earlier ``form``; what it holds stays, as far as
    that form knows of it."""
    new = path.with_suffix(".old")
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.executescript(f"BEGIN; {FORMS[form]} COMMIT;")
        triggers = [row[0] for row in old.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")]
        tables = [row[0] for row in old.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        kept = {
            name: old.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
            for name in triggers
        }
        for name in triggers:
            old.execute(f"DROP TRIGGER {name}")
        old.execute("ATTACH ? AS present", (str(path),))
        for table in tables:
            columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
            known = "WHERE name IN (SELECT name FROM main.totals)" if table == "totals" else ""
            old.execute(
                f"INSERT OR REPLACE INTO main.{table} ({columns}) SELECT {columns} FROM present.{table} {known}"
            )
        for sql in kept.values():
            old.execute(sql)
        old.execute("DETACH present")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(f"PRAGMA user_version = {VERSIONS[form]}")
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("-wal", "-shm"):
        Path(f"{path}{name}").unlink(missing_ok=True)
    new.rename(path)

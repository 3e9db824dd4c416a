"""The index's tables: one SQLite file, ``index.sqlite`` in the data directory.

The index says what is held, where it may be read and what points where; the bytes are in content-addressed files. A
row exists only after its file is durable; a file outlives its row by ``UNLINK_DELAY_S`` at least. Times are seconds
since the epoch (REAL). Digests are text (``sha256:…``).

``upstream`` in ``links``, ``manifests`` and ``cached_tags`` says on whose word a cache entered the row; NULL: it was
pushed here, or cached before version 3 (``store.words``).

Version 1 had none of ``CACHE_TABLES``, and grew by some of them without a number of its own; version 2 had no
``upstream`` and no ``cached_lists``. ``store.upgrade`` takes each of these forms to this one.
"""

from __future__ import annotations

SCHEMA_VERSION = 3
APPLICATION_ID = 0x51C1CE01

TABLES = """
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
-- A file of content that is held, blob or manifest alike.
CREATE TABLE contents (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
-- A blob that this repository may read. touched_at: when a writer last uploaded, mounted or HEADed it.
CREATE TABLE links (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    digest TEXT NOT NULL REFERENCES contents(digest),
    touched_at REAL NOT NULL,
    upstream TEXT,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX links_digest ON links(digest);
-- partial: entered by a cache, which gets what the manifest names when somebody asks for it.
CREATE TABLE manifests (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    digest TEXT NOT NULL REFERENCES contents(digest),
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    subject TEXT,
    artifact_type TEXT,
    annotations TEXT NOT NULL DEFAULT '{}',
    touched_at REAL NOT NULL,
    partial INTEGER NOT NULL DEFAULT 0,
    upstream TEXT,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX manifests_digest ON manifests(digest);
CREATE INDEX manifests_subject ON manifests(repository, subject) WHERE subject IS NOT NULL;
-- What a manifest names: kind is 'blob' or 'manifest'. Rows go with their parent.
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
-- Who moved what when; digest is NULL where the tag was deleted. Bounded per tag.
CREATE TABLE tag_history (
    id INTEGER PRIMARY KEY,
    repository INTEGER NOT NULL REFERENCES repositories(id),
    tag TEXT NOT NULL,
    digest TEXT,
    actor TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE INDEX tag_history_tag ON tag_history(repository, tag, id);
-- Files whose row is gone and whose unlinking waits; size in bytes.
CREATE TABLE condemned (
    digest TEXT PRIMARY KEY,
    condemned_at REAL NOT NULL,
    size INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
-- Whole-store counts, kept by triggers so that start and metrics never scan.
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

CACHE_TABLES = """
-- What the upstream last said about a tag: at checked_at it named digest, or was gone. Beside the row in tags, which is
-- what is served; where the two digests differ, somebody else has moved the tag since. A pinned tag never moves.
CREATE TABLE IF NOT EXISTS cached_tags (
    repository INTEGER NOT NULL REFERENCES repositories(id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    checked_at REAL NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0,
    upstream TEXT,
    PRIMARY KEY (repository, name)
) WITHOUT ROWID;
-- What a cache must keep: 'repository:tag', 'repository@digest' or a digest.
CREATE TABLE IF NOT EXISTS protected (
    reference TEXT PRIMARY KEY
) WITHOUT ROWID;
-- When an upstream could not be asked; '*': when no cache ran at all. Times of disuse do not count then.
CREATE TABLE IF NOT EXISTS outages (
    upstream TEXT NOT NULL,
    began_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    PRIMARY KEY (upstream, began_at)
) WITHOUT ROWID;
-- A list as the upstream last gave it, under the question for it (JSON, store.lists); length in characters.
CREATE TABLE IF NOT EXISTS cached_lists (
    question TEXT PRIMARY KEY,
    list TEXT NOT NULL,
    length INTEGER NOT NULL,
    seen_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cached_lists_seen ON cached_lists(seen_at, length);
-- What a cache has evicted so far, and when one last watched over its space.
INSERT OR IGNORE INTO totals VALUES ('evicted_images', 0), ('evicted_bytes', 0), ('swept_at', 0);
"""

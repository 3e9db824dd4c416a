"""An index as years of pushes leave it, written straight into SQLite: no file is needed to start.

Works on a data directory that the server has made, so the schema is the server's own (``sluice.store.schema``).
Digests are spread evenly, as real ones are, so that B-trees have their real shape.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

REPOSITORIES = 100
TAGS_PER_REPOSITORY_MIN = 10
_WRITTEN_AT = 1_700_000_000.0
_BLOB_BYTES, _MANIFEST_BYTES = 30_000_000, 2_000
_CACHE_KIB = 512 * 1024
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def fill_index(data: Path, blobs: int, tags: int) -> None:
    """Add ``blobs`` blobs, ``tags`` manifests with a tag each, and the edges between them."""
    database = sqlite3.connect(data / "index.sqlite", isolation_level=None)
    try:
        # A crash while generating costs a new run, so nothing here waits for the disk.
        for pragma in ("synchronous = OFF", f"cache_size = -{_CACHE_KIB}", "foreign_keys = OFF"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        _insert(database, blobs, tags)
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()


def repository_name(number: int) -> str:
    """The name of one of ``REPOSITORIES`` repositories."""
    return f"team{number % 10}/service{number:03}"


def _insert(database: sqlite3.Connection, blobs: int, tags: int) -> None:
    database.executemany(
        "INSERT INTO repositories (id, name) VALUES (?, ?)",
        ((number + 1, repository_name(number)) for number in range(REPOSITORIES)),
    )
    database.executemany(
        "INSERT INTO contents (digest, size, created_at) VALUES (?, ?, ?)", sorted(_contents(blobs, tags))
    )
    database.executemany(
        "INSERT INTO links (repository, digest, touched_at) VALUES (?, ?, ?)",
        sorted((_home(number, blobs, tags), _digest("blob", number), _WRITTEN_AT) for number in range(blobs)),
    )
    database.executemany(
        "INSERT INTO manifests (repository, digest, media_type, size, touched_at) VALUES (?, ?, ?, ?, ?)",
        (
            (_repository(tag), _digest("manifest", tag), _MANIFEST_TYPE, _MANIFEST_BYTES, _WRITTEN_AT)
            for tag in range(tags)
        ),
    )
    database.executemany(
        "INSERT INTO edges (repository, parent, child, kind, required) VALUES (?, ?, ?, 'blob', 1)",
        sorted(_edges(blobs, tags)),
    )
    database.executemany(
        "INSERT INTO tags (repository, name, digest, updated_at) VALUES (?, ?, ?, ?)",
        ((_repository(tag), f"tag-{tag:06}", _digest("manifest", tag), _WRITTEN_AT) for tag in range(tags)),
    )
    database.executemany(
        "INSERT INTO tag_history (repository, tag, digest, actor, at) VALUES (?, ?, ?, 'bench', ?)",
        ((_repository(tag), f"tag-{tag:06}", _digest("manifest", tag), _WRITTEN_AT) for tag in range(tags)),
    )


def _contents(blobs: int, tags: int) -> Iterator[tuple[str, int, float]]:
    for number in range(blobs):
        yield _digest("blob", number), _BLOB_BYTES, _WRITTEN_AT
    for tag in range(tags):
        yield _digest("manifest", tag), _MANIFEST_BYTES, _WRITTEN_AT


def _edges(blobs: int, tags: int) -> Iterator[tuple[int, str, str]]:
    for number in range(blobs):
        yield _home(number, blobs, tags), _digest("manifest", _owner(number, blobs, tags)), _digest("blob", number)


def _owner(blob: int, blobs: int, tags: int) -> int:
    """The manifest that names ``blob``: each names an equal share of them."""
    return blob * tags // blobs


def _home(blob: int, blobs: int, tags: int) -> int:
    return _repository(_owner(blob, blobs, tags))


def _repository(tag: int) -> int:
    return tag % REPOSITORIES + 1


def _digest(kind: str, number: int) -> str:
    return "sha256:" + hashlib.sha256(f"{kind}{number}".encode()).hexdigest()

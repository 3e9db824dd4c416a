"""What the store does to the index, as functions of a connection that is inside an index change.

Each is one step or one whole write of ``LocalStore``; ``store.index`` makes it atomic and durable. Digests are written
as text, times are seconds since the epoch.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from sluice.errors import BlobUnknown, ManifestBlobUnknown, ManifestUnknown, NameUnknown
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.words import WORD_TAKEN

MISSING_NAMED_MAX = 100  # digests listed in a refusal
GENERIC_MEDIA_TYPE = "application/octet-stream"

_LINK = f"""
INSERT INTO links(repository, digest, touched_at, upstream) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET touched_at = max(touched_at, excluded.touched_at), {WORD_TAKEN}
"""  # noqa: S608 - literals
_INSERT_MANIFEST = f"""
INSERT INTO manifests(repository, digest, media_type, size, subject, artifact_type, annotations, touched_at, partial,
    upstream) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET media_type = excluded.media_type, artifact_type = excluded.artifact_type,
    touched_at = max(touched_at, excluded.touched_at), partial = min(partial, excluded.partial), {WORD_TAKEN}
"""  # noqa: S608 - literals


@dataclass(frozen=True, slots=True)
class TagMove:
    """Point ``tag`` at ``digest`` (None: delete it), done by ``actor`` at ``at``; ``keep`` rows of history stay."""

    tag: Tag
    digest: Digest | None
    actor: str
    at: float
    keep: int


def repository_id(connection: sqlite3.Connection, repository: Repository) -> int | None:
    """The repository's row, or None where nothing was ever put there."""
    row = connection.execute("SELECT id FROM repositories WHERE name = ?", (repository,)).fetchone()
    return None if row is None else int(row[0])


def ensure_repository(connection: sqlite3.Connection, repository: Repository) -> int:
    """The repository's row, made where it is missing."""
    known = repository_id(connection, repository)
    if known is not None:
        return known
    return int(connection.execute("INSERT INTO repositories(name) VALUES (?)", (repository,)).lastrowid or 0)


def hold_content(connection: sqlite3.Connection, digest: Digest, size: int, now: float) -> None:
    """The file of ``digest`` is in place and durable: enter it, and lift its condemnation."""
    connection.execute(
        "INSERT INTO contents(digest, size, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (str(digest), size, now),
    )
    connection.execute("DELETE FROM condemned WHERE digest = ?", (str(digest),))


def link_blob(
    connection: sqlite3.Connection, repository: Repository, digest: Digest, now: float, word: str | None = None
) -> None:
    """Let ``repository`` read the blob, whose content is held, on the ``word`` of an upstream, or for good."""
    connection.execute(_LINK, (ensure_repository(connection, repository), str(digest), now, word))


def mount_blob(
    connection: sqlite3.Connection, repository: Repository, source: Repository, digest: Digest, now: float
) -> bool:
    """Link in ``repository`` what ``source`` may read. False where it may not."""
    row = connection.execute(
        "SELECT 1 FROM links JOIN repositories ON id = repository WHERE name = ? AND digest = ?", (source, str(digest))
    ).fetchone()
    if row is None:
        return False
    link_blob(connection, repository, digest, now)
    return True


def unlink_blob(connection: sqlite3.Connection, repository: Repository, digest: Digest) -> None:
    """Take the blob from the repository; its content is garbage collection's business. Raises BlobUnknown."""
    removed = connection.execute(
        "DELETE FROM links WHERE repository = (SELECT id FROM repositories WHERE name = ?) AND digest = ?",
        (repository, str(digest)),
    ).rowcount
    if not removed:
        raise BlobUnknown(f"blob {digest} is not in repository {repository}")


def enter_manifest(
    connection: sqlite3.Connection, repository: Repository, manifest: Manifest, now: float, sparse: bool
) -> None:
    """Everything but the tag: check the children, then the rows of content, manifest and edges.

    Raises ManifestBlobUnknown. ``sparse`` accepts manifests of an index that are not held. A missing subject is always
    accepted (spec: "Pushing Manifests with Subject").
    """
    _require_children(connection, repository, manifest, sparse)
    _enter(connection, repository, manifest, now, partial=False)


def enter_partial_manifest(
    connection: sqlite3.Connection, repository: Repository, manifest: Manifest, now: float, word: str | None = None
) -> None:
    """``enter_manifest`` for a cache, on the ``word`` of an upstream: what the manifest names may come later, or
    never."""
    _enter(connection, repository, manifest, now, partial=True, word=word)


def _require_children(connection: sqlite3.Connection, repository: Repository, manifest: Manifest, sparse: bool) -> None:
    number = ensure_repository(connection, repository)
    blobs, manifests = _children(manifest, "blob"), _children(manifest, "manifest")
    missing = _missing(connection, "links", number, blobs)
    if not sparse:
        missing += _missing(connection, "manifests", number, manifests)
    if missing:
        raise ManifestBlobUnknown(
            f"manifest {manifest.digest} names {len(missing)} digests that repository {repository} does not hold,"
            f" {missing[0]} for one: push them first",
            detail=missing[:MISSING_NAMED_MAX],
        )


def _enter(
    connection: sqlite3.Connection,
    repository: Repository,
    manifest: Manifest,
    now: float,
    *,
    partial: bool,
    word: str | None = None,
) -> None:
    number = ensure_repository(connection, repository)
    blobs, manifests = _children(manifest, "blob"), _children(manifest, "manifest")
    hold_content(connection, manifest.digest, len(manifest.raw), now)
    _touch(connection, "links", number, blobs, now)
    _touch(connection, "manifests", number, manifests, now)
    _insert_manifest(connection, number, manifest, (now, partial, word))
    _insert_edges(connection, number, manifest)


def move_tag(connection: sqlite3.Connection, repository: Repository, move: TagMove) -> bool:
    """Move or delete a tag and write its history. False where it already was so, and nothing is written."""
    number = ensure_repository(connection, repository)
    row = connection.execute("SELECT digest FROM tags WHERE repository = ? AND name = ?", (number, move.tag)).fetchone()
    target = None if move.digest is None else str(move.digest)
    if (None if row is None else row[0]) == target:
        return False
    if target is None:
        for table in ("tags", "cached_tags"):
            connection.execute(
                f"DELETE FROM {table} WHERE repository = ? AND name = ?",  # noqa: S608 - a literal
                (number, move.tag),
            )
    else:
        connection.execute(
            "INSERT INTO tags(repository, name, digest, updated_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET digest = excluded.digest, updated_at = excluded.updated_at",
            (number, move.tag, target, move.at),
        )
    _write_history(connection, number, move)
    return True


def delete_reference(
    connection: sqlite3.Connection, repository: Repository, reference: Reference, move: TagMove
) -> None:
    """Delete a tag, or a manifest with all tags on it; raises NameUnknown or ManifestUnknown. ``move`` carries actor,
    time and bound; its tag and digest are not used."""
    number = repository_id(connection, repository)
    if number is None:
        raise NameUnknown(f"repository {repository} does not exist")
    tags = _delete_manifest(connection, number, reference) if isinstance(reference, Digest) else [reference]
    moved = [move_tag(connection, repository, TagMove(tag, None, move.actor, move.at, move.keep)) for tag in tags]
    if not isinstance(reference, Digest) and not moved[0]:
        raise ManifestUnknown(f"tag {reference} does not exist in repository {repository}")


def _delete_manifest(connection: sqlite3.Connection, number: int, digest: Digest) -> list[Tag]:
    """Delete the rows of a manifest; returns the tags that pointed at it."""
    key = (number, str(digest))
    if not connection.execute("DELETE FROM manifests WHERE repository = ? AND digest = ?", key).rowcount:
        raise ManifestUnknown(f"manifest {digest} does not exist in this repository")
    connection.execute("DELETE FROM edges WHERE repository = ? AND parent = ?", key)
    return [Tag(row[0]) for row in connection.execute("SELECT name FROM tags WHERE repository = ? AND digest = ?", key)]


def _children(manifest: Manifest, kind: str) -> str:
    """The required digests of one kind as a JSON array, for ``json_each``."""
    return json.dumps([str(child.digest) for child in manifest.children if child.kind == kind and child.required])


def _missing(connection: sqlite3.Connection, table: str, number: int, digests: str) -> list[str]:
    query = f"""
        SELECT DISTINCT wanted.value FROM json_each(?) AS wanted
        WHERE NOT EXISTS (SELECT 1 FROM {table} AS held WHERE held.repository = ? AND held.digest = wanted.value)
    """  # noqa: S608 - the table is one of two literals of this module
    return [str(row[0]) for row in connection.execute(query, (digests, number))]


def _touch(connection: sqlite3.Connection, table: str, number: int, digests: str, now: float) -> None:
    connection.execute(
        f"UPDATE {table} SET touched_at = max(touched_at, ?)"  # noqa: S608 - as above
        " WHERE repository = ? AND digest IN (SELECT value FROM json_each(?))",
        (now, number, digests),
    )


def _insert_manifest(
    connection: sqlite3.Connection, number: int, manifest: Manifest, how: tuple[float, bool, str | None]
) -> None:
    now, partial, word = how
    connection.execute(
        _INSERT_MANIFEST,
        (
            number,
            str(manifest.digest),
            manifest.media_type,
            len(manifest.raw),
            None if manifest.subject is None else str(manifest.subject),
            manifest.artifact_type,
            json.dumps(manifest.annotations),
            now,
            int(partial),
            word,
        ),
    )


def _insert_edges(connection: sqlite3.Connection, number: int, manifest: Manifest) -> None:
    """One row for each child; a digest that is named twice is required if either place requires it."""
    required: dict[tuple[str, str], bool] = {}
    for child in manifest.children:
        key = (str(child.digest), child.kind)
        required[key] = required.get(key, False) or child.required
    connection.execute("DELETE FROM edges WHERE repository = ? AND parent = ?", (number, str(manifest.digest)))
    connection.executemany(
        "INSERT INTO edges(repository, parent, child, kind, required) VALUES (?, ?, ?, ?, ?)",
        [(number, str(manifest.digest), digest, kind, int(need)) for (digest, kind), need in required.items()],
    )


def _write_history(connection: sqlite3.Connection, number: int, move: TagMove) -> None:
    connection.execute(
        "INSERT INTO tag_history(repository, tag, digest, actor, at) VALUES (?, ?, ?, ?, ?)",
        (number, move.tag, None if move.digest is None else str(move.digest), move.actor, move.at),
    )
    connection.execute(
        "DELETE FROM tag_history WHERE repository = ?1 AND tag = ?2 AND id <= (SELECT id FROM tag_history"
        " WHERE repository = ?1 AND tag = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
        (number, move.tag, move.keep),
    )

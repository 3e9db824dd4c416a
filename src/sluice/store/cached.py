"""What the index knows on behalf of a cache: what the upstream last said about tags, and who may read a held blob.

Changes first, as in ``store.changes``, then queries, as in ``store.queries``. The row in ``tags`` is what is served,
in every mode; the row in ``cached_tags`` says how old that knowledge is. So a cache that becomes a registry of its own
keeps every tag, and one that was a registry asks about each tag once.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.changes import TagMove, link_blob, move_tag, repository_id
from sluice.store.queries import content_size, find_manifest


@dataclass(frozen=True, slots=True)
class CachedTag:
    """A tag that can be served: ``descriptor`` is what it names here. ``checked_at``: when the upstream last spoke
    about it, in seconds since the epoch; None where it never did, or where the tag was moved here since. ``gone``: it
    then said that there is no such tag."""

    descriptor: Descriptor
    checked_at: float | None
    gone: bool
    pinned: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """``linked``: the repository may read the blob. ``held``: its content is here, for whichever repository.
    ``named``: a manifest of the repository names it."""

    linked: bool
    held: bool
    named: bool


def link_held(connection: sqlite3.Connection, repository: Repository, digest: Digest, now: float) -> bool:
    """Link a blob whose content is held; False where it is not."""
    if content_size(connection, digest) is None:
        return False
    link_blob(connection, repository, digest, now)
    return True


def confirm_tag(connection: sqlite3.Connection, repository: Repository, move: TagMove) -> None:
    """The upstream said at ``move.at`` that the tag names ``move.digest``. A pinned tag stays where it is."""
    number = repository_id(connection, repository)
    if number is not None and _pinned(connection, number, move.tag):
        return
    move_tag(connection, repository, move)
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, checked_at = excluded.checked_at, gone = 0",
        (repository_id(connection, repository), move.tag, str(move.digest), move.at),
    )


def note_gone(connection: sqlite3.Connection, repository: Repository, tag: Tag, now: float) -> None:
    """The upstream said at ``now`` that there is no such tag; what is held stays, and so does the tag."""
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at, gone)"
        " SELECT t.repository, t.name, t.digest, ?, 1 FROM tags AS t JOIN repositories AS r ON r.id = t.repository"
        " WHERE r.name = ? AND t.name = ? ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, checked_at = excluded.checked_at, gone = 1",
        (now, repository, tag),
    )


def drop_tag(connection: sqlite3.Connection, repository: Repository, move: TagMove) -> None:
    """Delete the tag, unless it is pinned."""
    number = repository_id(connection, repository)
    if number is not None and not _pinned(connection, number, move.tag):
        move_tag(connection, repository, move)


def pin_tag(connection: sqlite3.Connection, repository: Repository, tag: Tag, pinned: bool) -> None:
    """Pin the tag to what it names now, or unpin it; raises NameUnknown or ManifestUnknown."""
    digest = find_manifest(connection, repository, tag).digest
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at, pinned) VALUES (?, ?, ?, 0, ?)"
        " ON CONFLICT DO UPDATE SET pinned = excluded.pinned",
        (repository_id(connection, repository), tag, str(digest), int(pinned)),
    )


def find_tag(connection: sqlite3.Connection, repository: Repository, tag: Tag) -> CachedTag | None:
    """The tag with what the upstream last said; None where its manifest is not held."""
    row = connection.execute(
        "SELECT m.media_type, m.digest, m.size, c.digest = t.digest, c.checked_at, c.gone, c.pinned"
        " FROM repositories AS r JOIN tags AS t ON t.repository = r.id"
        " JOIN manifests AS m ON m.repository = r.id AND m.digest = t.digest"
        " LEFT JOIN cached_tags AS c ON c.repository = r.id AND c.name = t.name WHERE r.name = ? AND t.name = ?",
        (repository, tag),
    ).fetchone()
    if row is None:
        return None
    descriptor = Descriptor(row[0], Digest.parse(row[1]), row[2])
    current = bool(row[3])  # NULL without a row in cached_tags
    return CachedTag(descriptor, row[4] if current else None, current and bool(row[5]), bool(row[6]))


def find_standing(connection: sqlite3.Connection, repository: Repository, digest: Digest) -> Standing:
    """How the blob stands to the repository."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM links WHERE repository = r.id AND digest = ?1),"
        " EXISTS (SELECT 1 FROM edges WHERE repository = r.id AND child = ?1 AND kind = 'blob')"
        " FROM repositories AS r WHERE r.name = ?2",
        (str(digest), repository),
    ).fetchone()
    linked, named = (False, False) if row is None else (bool(row[0]), bool(row[1]))
    return Standing(linked, content_size(connection, digest) is not None, named)


def _pinned(connection: sqlite3.Connection, number: int, tag: Tag) -> bool:
    query = "SELECT 1 FROM cached_tags WHERE repository = ? AND name = ? AND pinned"
    return connection.execute(query, (number, tag)).fetchone() is not None

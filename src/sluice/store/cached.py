"""What the index knows on behalf of a cache: what the upstream last said about tags, and who may read a held blob.

Changes first, as in ``store.changes``, then queries, as in ``store.queries``. The row in ``tags`` is what is served,
in every mode; the row in ``cached_tags`` says how old that knowledge is. So a cache that becomes a registry of its own
keeps every tag, and one that was a registry asks about each tag once.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from sluice.errors import ManifestUnknown
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.changes import TagMove, link_blob, move_tag, repository_id
from sluice.store.queries import content_size, find_manifest
from sluice.store.words import visible

_STANDING = f"""
SELECT EXISTS (SELECT 1 FROM links AS l WHERE l.repository = r.id AND l.digest = :digest AND {visible("l")}),
EXISTS (
    SELECT 1 FROM edges AS e JOIN manifests AS m ON m.repository = e.repository AND m.digest = e.parent
    WHERE e.repository = r.id AND e.child = :digest AND e.kind = 'blob' AND {visible("m")}
),
EXISTS (SELECT 1 FROM links AS l WHERE l.digest = :digest AND (:word IS NULL OR l.upstream = :word))
FROM repositories AS r WHERE r.name = :repository
"""  # noqa: S608 - literals
_FIND_TAG = f"""
SELECT m.media_type, m.digest, m.size, c.digest = t.digest, c.checked_at, c.gone, c.pinned
FROM repositories AS r JOIN tags AS t ON t.repository = r.id
JOIN manifests AS m ON m.repository = r.id AND m.digest = t.digest
LEFT JOIN cached_tags AS c ON c.repository = r.id AND c.name = t.name
WHERE r.name = :repository AND t.name = :tag AND {visible("m")} AND (c.digest <> t.digest OR {visible("c")})
"""  # noqa: S608 - literals


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
    ``named``: a manifest of the repository names it. ``kin``: the repository's own upstream brought it, for whichever
    repository."""

    linked: bool
    held: bool
    named: bool
    kin: bool


def link_held(
    connection: sqlite3.Connection, repository: Repository, digest: Digest, now: float, word: str | None = None
) -> bool:
    """Link a blob whose content is held; False where it is not."""
    if content_size(connection, digest) is None:
        return False
    link_blob(connection, repository, digest, now, word)
    return True


def confirm_tag(connection: sqlite3.Connection, repository: Repository, move: TagMove, word: str | None = None) -> None:
    """The upstream of ``word`` said at ``move.at`` that the tag names ``move.digest``. A pinned tag stays as it is."""
    number = repository_id(connection, repository)
    if number is not None and _pinned(connection, number, move.tag):
        return
    move_tag(connection, repository, move)
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at, upstream) VALUES (?, ?, ?, ?, ?) ON CONFLICT"
        " DO UPDATE SET digest = excluded.digest, checked_at = excluded.checked_at, gone = 0,"
        " upstream = excluded.upstream",
        (repository_id(connection, repository), move.tag, str(move.digest), move.at, word),
    )


def note_gone(
    connection: sqlite3.Connection, repository: Repository, tag: Tag, now: float, word: str | None = None
) -> None:
    """The upstream of ``word`` said at ``now`` that there is no such tag; what is held stays, and so does the tag. What
    another upstream said of it stays as it is."""
    if find_tag(connection, repository, tag, word) is None:
        return
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at, gone, upstream)"
        " SELECT t.repository, t.name, t.digest, ?, 1, ? FROM tags AS t JOIN repositories AS r ON r.id = t.repository"
        " WHERE r.name = ? AND t.name = ? ON CONFLICT DO UPDATE"
        " SET digest = excluded.digest, checked_at = excluded.checked_at, gone = 1, upstream = excluded.upstream",
        (now, word, repository, tag),
    )


def drop_tag(connection: sqlite3.Connection, repository: Repository, move: TagMove, word: str | None = None) -> None:
    """Delete the tag, unless it is pinned, or there on the word of another upstream."""
    number = repository_id(connection, repository)
    foreign = word is not None and find_tag(connection, repository, move.tag, word) is None
    if number is not None and not foreign and not _pinned(connection, number, move.tag):
        move_tag(connection, repository, move)


def pin_tag(
    connection: sqlite3.Connection, repository: Repository, tag: Tag, pinned: bool, word: str | None = None
) -> None:
    """Pin the tag to what it names now, or unpin it; raises NameUnknown or ManifestUnknown, also where it is pinned to
    what another upstream than that of ``word`` said."""
    if pinned and word is not None and find_tag(connection, repository, tag, word) is None:
        raise ManifestUnknown(
            f"tag {tag} of repository {repository} is pinned to what another upstream said, or could not be kept: unpin"
            " it first, or try again"
        )
    digest = find_manifest(connection, repository, tag).digest
    connection.execute(
        "INSERT INTO cached_tags(repository, name, digest, checked_at, pinned) VALUES (?, ?, ?, 0, ?)"
        " ON CONFLICT DO UPDATE SET pinned = excluded.pinned",
        (repository_id(connection, repository), tag, str(digest), int(pinned)),
    )


def find_tag(
    connection: sqlite3.Connection, repository: Repository, tag: Tag, word: str | None = None
) -> CachedTag | None:
    """The tag with what the upstream last said; None where its manifest is not held, or where it is there on the word
    of another upstream."""
    row = connection.execute(_FIND_TAG, {"repository": repository, "tag": tag, "word": word}).fetchone()
    if row is None:
        return None
    descriptor = Descriptor(row[0], Digest.parse(row[1]), row[2])
    current = bool(row[3])  # NULL without a row in cached_tags
    return CachedTag(descriptor, row[4] if current else None, current and bool(row[5]), bool(row[6]))


def find_standing(
    connection: sqlite3.Connection, repository: Repository, digest: Digest, word: str | None = None
) -> Standing:
    """How the blob stands to the repository, whose upstream is that of ``word``."""
    row = connection.execute(_STANDING, {"digest": str(digest), "repository": repository, "word": word}).fetchone()
    linked, named, kin = (False, False, False) if row is None else map(bool, row)
    return Standing(linked, content_size(connection, digest) is not None, named, kin)


def _pinned(connection: sqlite3.Connection, number: int, tag: Tag) -> bool:
    query = "SELECT 1 FROM cached_tags WHERE repository = ? AND name = ? AND pinned"
    return connection.execute(query, (number, tag)).fetchone() is not None

"""What the store asks the index, as functions of a connection that holds one snapshot (``Index.read``)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.changes import repository_id
from sluice.store.words import visible


@dataclass(frozen=True, slots=True)
class TagEvent:
    """One row of a tag's history: ``digest`` is None where the tag was deleted; ``at`` in seconds since the epoch."""

    digest: Digest | None
    actor: str
    at: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What is held: ``contents`` files of ``bytes`` bytes in all (blobs and manifests), and ``uploads`` open."""

    contents: int
    bytes: int
    uploads: int


_BLOB_SIZE = f"""
SELECT c.size FROM repositories AS r JOIN links AS l ON l.repository = r.id JOIN contents AS c ON c.digest = l.digest
WHERE r.name = :repository AND l.digest = :digest AND {visible("l")}
"""  # noqa: S608 - literals
_REFERRERS = f"""
SELECT media_type, digest, size, artifact_type, annotations FROM manifests AS m
WHERE repository = (SELECT id FROM repositories WHERE name = :repository) AND subject = :subject AND {visible("m")}
ORDER BY digest
"""  # noqa: S608 - literals
_BY_DIGEST = f"""
SELECT m.media_type, m.digest, m.size FROM manifests AS m JOIN repositories AS r ON r.id = m.repository
WHERE r.name = :repository AND m.digest = :reference AND {visible("m")}
"""  # noqa: S608 - literals
_BY_TAG = f"""
SELECT m.media_type, m.digest, m.size FROM repositories AS r
JOIN tags AS t ON t.repository = r.id JOIN manifests AS m ON m.repository = r.id AND m.digest = t.digest
WHERE r.name = :repository AND t.name = :reference AND {visible("m")}
"""  # noqa: S608 - literals
# Where the two digests differ, somebody has moved the tag here since, and no upstream speaks for it.
_TAGS = f"""
SELECT t.name FROM tags AS t LEFT JOIN cached_tags AS c
ON c.repository = t.repository AND c.name = t.name AND c.digest = t.digest
WHERE t.repository = :repository AND t.name > :last AND {visible("c")} ORDER BY t.name LIMIT :limit
"""  # noqa: S608 - literals


def find_manifest(
    connection: sqlite3.Connection, repository: Repository, reference: Reference, word: str | None = None
) -> Descriptor:
    """The manifest that a tag or digest names; raises NameUnknown or ManifestUnknown."""
    query = _BY_DIGEST if isinstance(reference, Digest) else _BY_TAG
    values = {"repository": repository, "reference": str(reference), "word": word}
    row = connection.execute(query, values).fetchone()
    if row is None:
        _require_repository(connection, repository)
        kind = "manifest" if isinstance(reference, Digest) else "tag"
        raise ManifestUnknown(f"{kind} {reference} does not exist in repository {repository}")
    return Descriptor(row[0], Digest.parse(row[1]), row[2])


def blob_size(connection: sqlite3.Connection, repository: Repository, digest: Digest, word: str | None = None) -> int:
    """Bytes of a blob that the repository may read; raises BlobUnknown."""
    values = {"repository": repository, "digest": str(digest), "word": word}
    row = connection.execute(_BLOB_SIZE, values).fetchone()
    if row is None:
        raise BlobUnknown(f"blob {digest} is not in repository {repository}")
    return int(row[0])


def content_size(connection: sqlite3.Connection, digest: Digest) -> int | None:
    """Bytes of held content, or None."""
    row = connection.execute("SELECT size FROM contents WHERE digest = ?", (str(digest),)).fetchone()
    return None if row is None else int(row[0])


def held_among(connection: sqlite3.Connection, digests: Iterable[Digest]) -> frozenset[Digest]:
    """Those of ``digests``, of which there are few, that are held."""
    return frozenset(digest for digest in digests if content_size(connection, digest) is not None)


def is_known(connection: sqlite3.Connection, digest: Digest) -> bool:
    """Whether the content is held, or condemned and not unlinked yet."""
    query = "SELECT 1 FROM contents WHERE digest = ?1 UNION ALL SELECT 1 FROM condemned WHERE digest = ?1"
    return connection.execute(query, (str(digest),)).fetchone() is not None


def list_tags(
    connection: sqlite3.Connection, repository: Repository, limit: int, last: str | None, word: str | None = None
) -> Sequence[Tag]:
    """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown, also where the upstream of ``word`` has
    spoken of none of those that are held."""
    values = {"repository": _require_repository(connection, repository), "word": word}
    rows = connection.execute(_TAGS, {**values, "last": last or "", "limit": limit}).fetchall()
    if (
        not rows
        and word is not None
        and connection.execute(_TAGS, {**values, "last": "", "limit": 1}).fetchone() is None
    ):
        raise NameUnknown(f"nothing is known about the tags of repository {repository}")
    return [Tag(row[0]) for row in rows]


def list_repositories(connection: sqlite3.Connection, limit: int, last: str | None) -> Sequence[Repository]:
    """Up to ``limit`` repositories with a manifest in them, after ``last`` in byte order."""
    rows = connection.execute(
        "SELECT name FROM repositories AS r WHERE name > ?"
        " AND EXISTS (SELECT 1 FROM manifests AS m WHERE m.repository = r.id) ORDER BY name LIMIT ?",
        (last or "", limit),
    )
    return [Repository(row[0]) for row in rows]


def list_referrers(
    connection: sqlite3.Connection, repository: Repository, subject: Digest, word: str | None = None
) -> Sequence[Referrer]:
    """Manifests of the repository whose subject this is, in digest order."""
    rows = connection.execute(_REFERRERS, {"repository": repository, "subject": str(subject), "word": word})
    return [Referrer(Descriptor(row[0], Digest.parse(row[1]), row[2]), row[3], json.loads(row[4])) for row in rows]


def list_history(connection: sqlite3.Connection, repository: Repository, tag: Tag) -> Sequence[TagEvent]:
    """Who moved the tag where, newest first; raises NameUnknown."""
    rows = connection.execute(
        "SELECT digest, actor, at FROM tag_history WHERE repository = ? AND tag = ? ORDER BY id DESC",
        (_require_repository(connection, repository), tag),
    )
    return [TagEvent(None if row[0] is None else Digest.parse(row[0]), row[1], row[2]) for row in rows]


def count(connection: sqlite3.Connection) -> dict[str, int]:
    """The whole-store counts ``contents`` and ``bytes``; scans nothing."""
    return dict(connection.execute("SELECT name, value FROM totals"))


def _require_repository(connection: sqlite3.Connection, repository: Repository) -> int:
    number = repository_id(connection, repository)
    if number is None:
        raise NameUnknown(f"repository {repository} does not exist")
    return number

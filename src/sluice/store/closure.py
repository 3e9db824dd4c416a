"""Which images cannot be pulled whole: the last question of ``store.scrub``.

An image is servable with its whole closure or not at all: index, manifests, configs and layers. What is missing deep
down is told by the name that somebody pulls, a tag, or a digest where there is neither tag nor parent.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from sluice.store.reach import chunks

MISSING_NAMED_MAX = 10  # digests named for each incomplete image

# A required child that the repository does not hold. In a sparse index (``storage.sparse_indexes``) missing manifests
# are as they should be, and so is all that a cache has not
# fetched yet (``partial``), but for those that a check has found damaged, which the second query finds.
_NOT_HELD = """
SELECT e.parent, e.child FROM edges AS e JOIN manifests AS p ON p.repository = e.repository AND p.digest = e.parent
WHERE e.repository = :repository AND e.required = 1 AND NOT p.partial AND CASE e.kind
WHEN 'blob' THEN NOT EXISTS (SELECT 1 FROM links AS l WHERE l.repository = e.repository AND l.digest = e.child)
ELSE NOT :sparse AND NOT EXISTS
(SELECT 1 FROM manifests AS m WHERE m.repository = e.repository AND m.digest = e.child) END
"""
_PARENTS = """
SELECT parent, child FROM edges WHERE repository = :repository AND required = 1
AND child IN (SELECT value FROM json_each(:digests))
"""
_HELD = """
SELECT digest FROM manifests
WHERE repository = :repository AND digest IN (SELECT value FROM json_each(:digests))
"""
_TAGS = """
SELECT digest, name FROM tags WHERE repository = :repository
AND digest IN (SELECT value FROM json_each(:digests)) ORDER BY name
"""
_LOST_TAGS = """
SELECT t.digest FROM tags AS t WHERE t.repository = :repository
AND NOT EXISTS (SELECT 1 FROM manifests AS m WHERE m.repository = t.repository AND m.digest = t.digest)
"""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """``name`` is ``repository:tag`` or ``repository@digest``; ``missing`` are up to ``MISSING_NAMED_MAX`` digests
    that its closure lacks."""

    name: str
    missing: tuple[str, ...]


def incomplete(
    connection: sqlite3.Connection, repository: int, name: str, damaged: AbstractSet[str], *, sparse: bool
) -> Iterator[Incomplete]:
    """The images of a repository that lack something: not held, or among ``damaged``, whether it has rows or not."""
    lacking = _lacking(connection, repository, damaged, sparse)
    tags = defaultdict(list)
    for digest, tag in _ask(connection, _TAGS, repository, lacking):
        tags[digest].append(tag)
    within = {child for _, child in _ask(connection, _PARENTS, repository, lacking)}
    held = {digest for (digest,) in _ask(connection, _HELD, repository, lacking)}
    for digest in sorted(lacking):
        missing = tuple(sorted(lacking[digest])[:MISSING_NAMED_MAX])
        for tag in tags[digest]:
            yield Incomplete(f"{name}:{tag}", missing)
        if not tags[digest] and digest in held and digest not in within:
            yield Incomplete(f"{name}@{digest}", missing)


def _lacking(
    connection: sqlite3.Connection, repository: int, damaged: AbstractSet[str], sparse: bool
) -> dict[str, set[str]]:
    """What each incomplete manifest lacks, itself included where that is lost."""
    lacking: defaultdict[str, set[str]] = defaultdict(set)
    parameters = {"repository": repository, "sparse": sparse}
    for parent, child in [
        *connection.execute(_NOT_HELD, parameters),
        *_ask(connection, _PARENTS, repository, damaged),
    ]:
        lacking[parent].add(child)
    for (digest,) in [*connection.execute(_LOST_TAGS, parameters), *_ask(connection, _HELD, repository, damaged)]:
        lacking[digest].add(digest)
    frontier = set(lacking)
    while frontier:  # from children to parents; ends because digests make rings of children impossible
        above = set()
        for parent, child in _ask(connection, _PARENTS, repository, frontier):
            if not lacking[child] <= lacking[parent]:
                lacking[parent] |= lacking[child]
                above.add(parent)
        frontier = above
    return lacking


def _ask(
    connection: sqlite3.Connection, query: str, repository: int, digests: Iterable[str]
) -> Iterator[tuple[str, ...]]:
    for chunk in chunks(sorted(digests)):
        yield from connection.execute(query, {"repository": repository, "digests": json.dumps(chunk)})

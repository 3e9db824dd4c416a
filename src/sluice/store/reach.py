"""What nothing holds any more in a repository: the decision behind ``store.gc``.

A manifest *suspect* has no tag and was not touched since the cutoff. A suspect is held by the manifests of its
repository that name it (an index and its images) and by its subject (an image and its signatures). It is garbage where
all its holders, recursively, are garbage: that is the same as not being reachable from anything tagged or touched.

The same two queries and the same ``doomed`` decide twice, once over a whole repository on a snapshot and once over a
batch inside the index change that removes it, so that a plan may be old and a removal never wrong. Digests are text.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

BATCH_ROWS = 500
"""Rows that one index change removes, or one query asks about, so that no push waits long behind it. A manifest's
edges count. One manifest, and one ring (see ``batches``), is never split."""

_SUSPECTS = """
SELECT m.digest FROM manifests AS m WHERE m.repository = :repository AND m.touched_at < :cutoff
AND NOT EXISTS (SELECT 1 FROM tags AS t WHERE t.repository = m.repository AND t.digest = m.digest)
"""
_AMONG_SUSPECTS = _SUSPECTS + "AND m.digest IN (SELECT value FROM json_each(:digests))"  # noqa: S608 - two literals
_HOLDERS = """
SELECT e.child, e.parent FROM edges AS e JOIN manifests AS p ON p.repository = e.repository AND p.digest = e.parent
WHERE e.repository = :repository AND e.kind = 'manifest' AND e.child IN (SELECT value FROM json_each(:digests))
UNION ALL
SELECT m.digest, s.digest FROM manifests AS m JOIN manifests AS s ON s.repository = m.repository
AND s.digest = m.subject WHERE m.repository = :repository AND m.digest IN (SELECT value FROM json_each(:digests))
"""
_LOOSE_LINKS = """
SELECT l.digest FROM links AS l WHERE l.repository = :repository AND l.touched_at < :cutoff
AND NOT EXISTS (SELECT 1 FROM edges AS e WHERE e.repository = l.repository AND e.child = l.digest)
"""
_AMONG_LOOSE_LINKS = _LOOSE_LINKS + "AND l.digest IN (SELECT value FROM json_each(:digests))"  # noqa: S608 - two literals
_NAMED_LINKS = """
SELECT DISTINCT e.child FROM json_each(:digests) AS d
CROSS JOIN edges AS e ON e.repository = :repository AND e.parent = d.value -- in this order: one look-up a parent
JOIN links AS l ON l.repository = e.repository AND l.digest = e.child WHERE l.touched_at < :cutoff
"""
_COUNTS = """
SELECT d.value, (SELECT count(*) FROM edges AS e WHERE e.repository = :repository AND e.parent = d.value)
FROM json_each(:digests) AS d
"""
_NAMES = """
SELECT child, parent FROM edges
WHERE repository = :repository AND child IN (SELECT value FROM json_each(:digests))
"""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go from one repository, by row number and name: manifests in batches whose order matters, then links."""

    repository: int
    name: str
    manifests: Sequence[Sequence[str]]
    links: Sequence[str]


def find_garbage(connection: sqlite3.Connection, repository: int, name: str, cutoff: float) -> Garbage:
    """Everything in a repository that nothing holds and nobody has touched since ``cutoff`` (seconds since the epoch).
    Reads only."""
    suspects = [row[0] for row in connection.execute(_SUSPECTS, {"repository": repository, "cutoff": cutoff})]
    holders = _holders(connection, repository, suspects)
    gone = doomed(holders)
    rows: dict[str, int] = {}
    for chunk in chunks(sorted(gone)):
        for digest, edges in connection.execute(_COUNTS, {"repository": repository, "digests": json.dumps(chunk)}):
            rows[digest] = 1 + edges
    return Garbage(repository, name, tuple(batches(holders, rows)), _links(connection, repository, cutoff, gone))


def still_doomed(
    connection: sqlite3.Connection, garbage: Garbage, digests: Sequence[str], cutoff: float, spared: AbstractSet[str]
) -> set[str]:
    """The manifests among ``digests`` that may go now, all at once; ``spared`` ones stay, with what they hold."""
    parameters = {"repository": garbage.repository, "cutoff": cutoff, "digests": json.dumps(digests)}
    suspects = {row[0] for row in connection.execute(_AMONG_SUSPECTS, parameters)} - spared
    return doomed(_holders(connection, garbage.repository, suspects))


def still_loose(
    connection: sqlite3.Connection, garbage: Garbage, digests: Sequence[str], cutoff: float, spared: AbstractSet[str]
) -> set[str]:
    """The links among ``digests`` that no manifest of the repository names now."""
    parameters = {"repository": garbage.repository, "cutoff": cutoff, "digests": json.dumps(digests)}
    return {row[0] for row in connection.execute(_AMONG_LOOSE_LINKS, parameters)} - spared


def doomed(holders: Mapping[str, Collection[str]]) -> set[str]:
    """PURE. Of the suspects, the keys of ``holders``, those that only doomed suspects hold."""
    held = _inverse(holders)
    frontier = [holder for holder in held if holder not in holders]
    kept: set[str] = set()
    while frontier:
        for suspect in held.get(frontier.pop(), ()):
            if suspect not in kept:
                kept.add(suspect)
                frontier.append(suspect)
    return holders.keys() - kept


def batches(holders: Mapping[str, Collection[str]], rows: Mapping[str, int]) -> Iterator[list[str]]:
    """PURE. The doomed, the keys of ``rows``, in an order in which each batch can go on its own: holders before what
    they hold. A batch takes as many as have ``BATCH_ROWS`` rows together, or one that has more.

    There can be rings: an index whose subject is one of its own images holds that image and is held by it. No member
    of a ring can go before the others, so what is left once the order is exhausted goes in connected pieces.
    """
    gone = rows.keys()
    within = {one: set(holders[one]) & gone for one in gone}
    held = _inverse(within)
    unmet = {one: len(its) for one, its in within.items()}
    order = [one for one in sorted(gone) if not unmet[one]]
    for one in order:  # grows while it is walked
        for other in sorted(held.get(one, ())):
            unmet[other] -= 1
            if not unmet[other]:
                order.append(other)
    yield from chunks(order, rows)
    yield from _pieces(gone - set(order), within, held)


def chunks(digests: Iterable[str], rows: Mapping[str, int] | None = None) -> Iterator[list[str]]:
    """PURE. Lists of up to ``BATCH_ROWS``, in order; each digest counts as ``rows`` says, or as one."""
    chunk: list[str] = []
    weight = 0
    for one in digests:
        weight += rows[one] if rows else 1
        if chunk and weight > BATCH_ROWS:
            yield chunk
            chunk, weight = [], rows[one] if rows else 1
        chunk.append(one)
    if chunk:
        yield chunk


def _pieces(
    rest: AbstractSet[str], holders: Mapping[str, AbstractSet[str]], held: Mapping[str, AbstractSet[str]]
) -> Iterator[list[str]]:
    while rest:
        piece, frontier = [], [min(rest)]
        rest = rest - set(frontier)
        while frontier:
            one = frontier.pop()
            piece.append(one)
            near = (holders[one] | held.get(one, set())) & rest
            rest = rest - near
            frontier += near
        yield sorted(piece)


def _inverse(relation: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    inverse: defaultdict[str, set[str]] = defaultdict(set)
    for one, others in relation.items():
        for other in others:
            inverse[other].add(one)
    return dict(inverse)


def _holders(connection: sqlite3.Connection, repository: int, suspects: Iterable[str]) -> dict[str, set[str]]:
    """For each suspect the manifests of the repository that hold it."""
    found: dict[str, set[str]] = {suspect: set() for suspect in suspects}
    for chunk in chunks(found):
        for suspect, holder in connection.execute(_HOLDERS, {"repository": repository, "digests": json.dumps(chunk)}):
            found[suspect].add(holder)
    return found


def _links(connection: sqlite3.Connection, repository: int, cutoff: float, gone: AbstractSet[str]) -> list[str]:
    """Stale links that no manifest names, or none but those that will be ``gone``."""
    loose = {row[0] for row in connection.execute(_LOOSE_LINKS, {"repository": repository, "cutoff": cutoff})}
    named: dict[str, set[str]] = {}
    for chunk in chunks(sorted(gone)):
        parameters = {"repository": repository, "cutoff": cutoff, "digests": json.dumps(chunk)}
        named.update((row[0], set()) for row in connection.execute(_NAMED_LINKS, parameters))
    for chunk in chunks(list(named)):
        for child, parent in connection.execute(_NAMES, {"repository": repository, "digests": json.dumps(chunk)}):
            named[child].add(parent)
    return sorted(loose | {child for child, parents in named.items() if parents <= gone})

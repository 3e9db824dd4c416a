"""An index filled with a graph that is given by short names, for tests of garbage collection and checks.

Real digests, no files: what a name stands for is content with the name's own bytes, and ``put_files`` makes the files
where a test wants them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sluice.oci.digest import Digest
from sluice.store.local import LocalStore

GRACE_S = 1000.0
START = 1_000_000.0
STALE, FRESH = START - GRACE_S - 1, START - GRACE_S + 1
_TABLES = ("edges", "manifests", "links", "contents", "tags", "cached_tags", "condemned", "repositories")

Row = tuple[str, str]


class Clock:
    """Time that a test sets, in seconds; begins at ``START``."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


@dataclass(frozen=True)
class Node:
    """A manifest; ``blobs`` and ``children`` are what it names, all by short name."""

    blobs: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    subject: str | None = None
    tagged: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Contained:
    """A repository: its manifests by name, and the blobs that are linked in it, by name, with whether each is fresh."""

    manifests: dict[str, Node] = field(default_factory=dict)
    links: dict[str, bool] = field(default_factory=dict)


World = Mapping[str, Contained]
"""Repositories by name."""


def digest(name: str) -> str:
    """The digest, as text, of the content that ``name`` stands for."""
    return str(Digest.of(name.encode()))


def fill(store: LocalStore, world: World, orphans: Iterable[str] = ()) -> None:
    """Make the index hold exactly ``world``, and contents that no repository has."""

    def change(connection: sqlite3.Connection) -> None:
        for table in _TABLES:
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - a literal
        for name in orphans:
            _put_content(connection, name)
        for number, contained in enumerate(world.values()):
            _put_repository(connection, number, list(world)[number], contained)

    store.index.write_blocking(change)


def _put_content(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", (digest(name), len(name), STALE))


def _put_repository(connection: sqlite3.Connection, number: int, name: str, contained: Contained) -> None:
    connection.execute("INSERT INTO repositories VALUES (?, ?)", (number, name))
    for blob, fresh in contained.links.items():
        _put_content(connection, blob)
        connection.execute(
            "INSERT INTO links VALUES (?, ?, ?, NULL)", (number, digest(blob), FRESH if fresh else STALE)
        )
    for manifest, node in contained.manifests.items():
        _put_content(connection, manifest)
        connection.execute(
            "INSERT INTO manifests VALUES (?, ?, 'x', ?, ?, NULL, '{}', ?, 0, NULL)",
            (
                *(number, digest(manifest), len(manifest)),
                *(digest(node.subject) if node.subject else None, FRESH if node.fresh else STALE),
            ),
        )
        for kind, children in (("blob", node.blobs), ("manifest", node.children)):
            connection.executemany(
                "INSERT INTO edges VALUES (?, ?, ?, ?, 1)",
                [(number, digest(manifest), digest(child), kind) for child in set(children)],
            )
        if node.tagged:
            connection.execute("INSERT INTO tags VALUES (?, ?, ?, 0)", (number, "t-" + manifest, digest(manifest)))


def put_files(store: LocalStore, *names: str) -> None:
    """Make the content files of ``names``."""
    for name in names:
        store.paths.content(Digest.parse(digest(name))).write_bytes(name.encode())


def files(store: LocalStore) -> set[str]:
    """The digests of all content files."""
    return {f"sha256:{path.name}" for path in store.paths.contents.rglob("*") if path.is_file()}


def held(store: LocalStore) -> tuple[set[Row], set[Row], set[str]]:
    """Manifests and links as (repository, digest), and contents."""

    def query(connection: sqlite3.Connection) -> tuple[set[Row], set[Row], set[str]]:
        by_name = "SELECT r.name, x.digest FROM {} AS x JOIN repositories AS r ON r.id = x.repository"
        manifests, links = (set(connection.execute(by_name.format(table))) for table in ("manifests", "links"))
        return manifests, links, {row[0] for row in connection.execute("SELECT digest FROM contents")}

    return store.index.read(query)

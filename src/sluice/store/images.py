"""What a repository holds, image by image: what a cache lists, and what it evicts.

An image is a *root*, with all that hangs on it in its repository: a manifest that has a tag, or that no manifest held
there names. A blob that no manifest names (its manifest was evicted, or has not come yet) is a root of its own. So
every row of a manifest and every link belongs to at least one root, and what belongs to several stays until the last
one leaves. Digests are text.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeldImage:
    """A root. ``digests`` are its whole closure, ``held`` what of that the repository has.

    ``used_at``: when somebody last used it, or anything that is its alone, in seconds since the epoch.
    ``pushed``: it did not come from an upstream. ``complete``: each manifest that is held has all its blobs, and an
    index at least one of its manifests. ``blob``: it is a blob without a manifest.
    """

    repository: str
    digest: str
    tags: tuple[str, ...]
    held: frozenset[str]
    digests: frozenset[str]
    used_at: float
    pinned: bool = False
    protected: bool = False
    pushed: bool = False
    complete: bool = True
    blob: bool = False

    @property
    def name(self) -> str:
        """How to call it: by its first tag, else by its digest."""
        return f"{self.repository}:{self.tags[0]}" if self.tags else f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Holdings:
    """All images, and the size in bytes of each content that is held."""

    images: Sequence[HeldImage]
    sizes: Mapping[str, int]


@dataclass(slots=True)
class _Repository:
    """The rows of one repository."""

    name: str
    manifests: dict[str, tuple[float, bool]] = field(default_factory=dict)  # when it was touched, whether it is partial
    links: dict[str, float] = field(default_factory=dict)
    blobs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by the manifest naming them
    optional: set[str] = field(default_factory=set)  # blobs that clients get elsewhere
    children: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    tags: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    pinned: set[str] = field(default_factory=set)


def find_holdings(connection: sqlite3.Connection) -> Holdings:
    """Everything that is held. Reads all rows of the index: seldom, and never in the event loop."""
    protected = frozenset(row[0] for row in connection.execute("SELECT reference FROM protected"))
    images = [image for repository in _repositories(connection) for image in _images(repository, protected)]
    return Holdings(images, dict(connection.execute("SELECT digest, size FROM contents")))


def is_protected(repository: str, tags: Sequence[str], manifests: AbstractSet[str], among: AbstractSet[str]) -> bool:
    """PURE. Whether references ``among`` name one of an image's tags or manifests."""
    names = {f"{repository}:{tag}" for tag in tags} | {f"{repository}@{digest}" for digest in manifests} | manifests
    return bool(among) and not among.isdisjoint(names)


def _repositories(connection: sqlite3.Connection) -> list[_Repository]:
    found = {number: _Repository(name) for number, name in connection.execute("SELECT id, name FROM repositories")}
    rows = connection.execute("SELECT repository, digest, touched_at, partial FROM manifests")
    for number, digest, touched_at, partial in rows:
        found[number].manifests[digest] = (touched_at, bool(partial))
    for number, digest, touched_at in connection.execute("SELECT repository, digest, touched_at FROM links"):
        found[number].links[digest] = touched_at
    rows = connection.execute("SELECT repository, parent, child, kind, required FROM edges")
    for number, parent, child, kind, required in rows:
        named = found[number].blobs if kind == "blob" else found[number].children
        named[parent].add(child)
        if not required:
            found[number].optional.add(child)
    rows = connection.execute(
        "SELECT t.repository, t.name, t.digest, coalesce(c.pinned, 0) FROM tags AS t LEFT JOIN cached_tags AS c"
        " ON c.repository = t.repository AND c.name = t.name ORDER BY t.repository, t.name"
    )
    for number, name, digest, pinned in rows:
        found[number].tags[digest].append(name)
        if pinned:
            found[number].pinned.add(digest)
    return list(found.values())


def _images(repository: _Repository, protected: AbstractSet[str]) -> Iterator[HeldImage]:
    named = {child for parent in repository.manifests for child in repository.children[parent]}
    closures = {
        digest: _closure(repository, digest)
        for digest, (_, partial) in repository.manifests.items()
        if digest not in named or not partial or repository.tags.get(digest)
    }
    owners = Counter(one for closure in closures.values() for part in closure for one in part)
    for digest, (manifests, blobs) in closures.items():
        yield _image(repository, digest, (manifests, blobs), owners, protected)
    for digest, touched_at in repository.links.items():
        if digest not in owners:
            alone = frozenset({digest})
            kept = is_protected(repository.name, (), alone, protected)
            yield HeldImage(repository.name, digest, (), alone, alone, touched_at, protected=kept, blob=True)


def _closure(repository: _Repository, root: str) -> tuple[set[str], set[str]]:
    """The manifests below a root that are held, itself included, and all blobs that they name."""
    manifests, blobs, frontier = {root}, set[str](), [root]
    while frontier:
        parent = frontier.pop()
        blobs |= repository.blobs[parent]
        new = {child for child in repository.children[parent] if child in repository.manifests} - manifests
        manifests |= new
        frontier += new
    return manifests, blobs


def _image(
    repository: _Repository,
    digest: str,
    closure: tuple[set[str], set[str]],
    owners: Mapping[str, int],
    protected: AbstractSet[str],
) -> HeldImage:
    manifests, blobs = closure
    tags = tuple(repository.tags.get(digest, ()))
    links = blobs & repository.links.keys()
    uses = [repository.manifests[one][0] for one in manifests if one == digest or owners[one] == 1]
    uses += [repository.links[one] for one in links if owners[one] == 1]
    unheld = {child for parent in manifests for child in repository.children[parent]} - manifests
    return HeldImage(
        repository.name,
        digest,
        tags,
        held=frozenset(manifests | links),
        digests=frozenset(manifests | blobs | unheld),
        used_at=max(uses),
        pinned=digest in repository.pinned,
        protected=is_protected(repository.name, tags, manifests | unheld, protected),
        pushed=any(not repository.manifests[one][1] for one in manifests),
        complete=blobs - repository.optional <= links and all(_has_some(repository, one) for one in manifests),
    )


def _has_some(repository: _Repository, manifest: str) -> bool:
    children = repository.children[manifest]
    return not children or any(child in repository.manifests for child in children)

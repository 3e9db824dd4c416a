"""What a registry must answer, in a few dictionaries: the model that the fuzz suite compares the server with. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from integration.samples import encoded
from sluice.oci.mediatype import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from sluice.testing.client import descriptor, digest_of

Outcome = tuple[int, str | None]
"""Status and error code."""

CONTENTS = tuple(bytes([65 + number]) * size for number, size in enumerate((0, 1, 2, 1_000, 70_000, 600_000)))
"""The blobs that there are; few, so that everything meets everything."""


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest. ``blobs`` and ``manifests`` are the digests that it needs."""

    raw: bytes
    media_type: str
    blobs: frozenset[str] = frozenset()
    manifests: frozenset[str] = frozenset()
    subject: str | None = None

    @property
    def descriptor(self) -> dict[str, object]:
        """As an index or a subject names it."""
        return descriptor(self.raw, self.media_type)


def image(config: bytes, layers: list[bytes], subject: Document | None, note: str) -> Document:
    """An image over contents."""
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, OCI_CONFIG),
        "layers": [descriptor(layer, OCI_LAYER) for layer in layers],
        "annotations": {"note": note},
    }
    needed = frozenset(digest_of(data) for data in (config, *layers))
    return _document(body, OCI_MANIFEST, subject, blobs=needed)


def index(manifests: list[Document], subject: Document | None, note: str) -> Document:
    """An index over manifests."""
    entries = [manifest.descriptor for manifest in manifests]
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"note": note}}
    return _document(body, OCI_INDEX, subject, manifests=frozenset(digest_of(one.raw) for one in manifests))


def _document(
    body: dict[str, Any],
    media_type: str,
    subject: Document | None,
    *,
    blobs: frozenset[str] = frozenset(),
    manifests: frozenset[str] = frozenset(),
) -> Document:
    if subject is not None:
        body["subject"] = subject.descriptor
    return Document(encoded(body), media_type, blobs, manifests, None if subject is None else digest_of(subject.raw))


@dataclass(slots=True)
class Session:
    """An upload that is open."""

    repository: RepositoryModel
    path: str
    data: bytes = b""

    @property
    def range(self) -> str:
        """The header that tells how far it has come."""
        return f"0-{max(len(self.data) - 1, 0)}"


@dataclass(slots=True)
class RepositoryModel:
    """What one repository holds."""

    name: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Document] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def put(self, document: Document, reference: str) -> Outcome:
        """PUT of a manifest by tag or digest; done where it is accepted."""
        algorithm, colon, _ = reference.partition(":")
        digest = digest_of(document.raw, algorithm if colon else "sha256")
        if colon and reference != digest:
            return 400, "DIGEST_INVALID"
        if not (document.blobs <= self.blobs.keys() and document.manifests <= self.manifests.keys()):
            return 404, "MANIFEST_BLOB_UNKNOWN"
        self.manifests[digest] = document
        if not colon:
            self.tags[reference] = digest
        return 201, None

    def find(self, reference: str) -> Document | None:
        """The manifest that a tag or digest names."""
        return self.manifests.get(self.tags.get(reference, reference))

    def delete(self, reference: str) -> Outcome:
        """DELETE of a tag or of a manifest with its tags; done where there is one."""
        if reference in self.tags:
            del self.tags[reference]
            return 202, None
        if self.manifests.pop(reference, None) is None:
            return 404, None
        self.tags = {tag: digest for tag, digest in self.tags.items() if digest != reference}
        return 202, None

    def referrers(self, subject: str) -> list[str]:
        """Digests of what refers to a digest, in order."""
        return sorted(digest for digest, document in self.manifests.items() if document.subject == subject)

    def collect(self) -> None:
        """Garbage collection without a grace period: keep what tags reach, downwards and by referrers."""
        kept, frontier = set[str](), [*self.tags.values()]
        while frontier:
            digest = frontier.pop()
            if digest in self.manifests and digest not in kept:
                kept.add(digest)
                frontier += [*self.manifests[digest].manifests, *self.referrers(digest)]
        self.manifests = {digest: document for digest, document in self.manifests.items() if digest in kept}
        named = frozenset[str]().union(*(document.blobs for document in self.manifests.values()))
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in named}

"""The contracts that carry image content. PURE: types only.

``Source`` reads, ``Sink`` writes, ``Uploads`` is the resumable way in that only a store of our own has. Each has at
most five methods, an in-memory twin (``store.memory``) and a conformance function (``testing.conformance``).
Modes are nothing but wirings of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a reference resolves to: ``size`` in bytes, ``media_type`` as it was pushed."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Referrer:
    """One entry of a referrers listing (spec: "Listing Referrers")."""

    descriptor: Descriptor
    artifact_type: str | None
    annotations: dict[str, str] = field(default_factory=dict)


class BlobReader(Protocol):
    """An open blob. It stays readable until closed, whatever becomes of the blob meanwhile."""

    @property
    def size(self) -> int | None:
        """Whole length in bytes; None where an upstream does not tell."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, fewer only at the end of a blob of unknown size.

        Raises StoreDamaged or an UpstreamError where they cannot be had."""
        ...

    def close(self) -> None:
        """Release it; idempotent."""
        ...


class BlobWriter(Protocol):
    """New content on its way in; visible to nobody before ``commit``."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""
        ...

    async def write(self, data: Sequence[bytes]) -> None:
        """Append; raises StorageFull. After an error ``offset`` is still the truth."""
        ...

    async def commit(self, digest: Digest) -> Descriptor:
        """Verify, make durable, publish in the repository; raises DigestInvalid (the content is then dropped)."""
        ...

    async def abort(self) -> None:
        """Drop it; idempotent."""
        ...


class Source(Protocol):
    """Where content is read from."""

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """The manifest that a tag or digest names; raises NameUnknown or ManifestUnknown."""
        ...

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """The manifest's exact bytes with its media type; raises ManifestUnknown."""
        ...

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """Open a blob that this repository may read; raises BlobUnknown. ``offset``: where reading will begin, in
        bytes, so that a source far away can begin there; reading elsewhere works too."""
        ...

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown."""
        ...

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """Manifests whose ``subject`` is this digest, in digest order; empty where there are none."""
        ...


class Sink(Protocol):
    """Where content is written to. ``actor`` is who does it, for the tag history."""

    async def begin_blob(self, repository: Repository) -> BlobWriter:
        """Start new content; raises StorageFull."""
        ...

    async def put_manifest(
        self, repository: Repository, reference: Reference, manifest: Manifest, actor: str
    ) -> Descriptor:
        """Durable when it returns; raises ManifestBlobUnknown, DigestInvalid or StorageFull."""
        ...

    async def delete(self, repository: Repository, reference: Reference, actor: str) -> None:
        """Remove a tag, or a manifest with all tags on it; raises ManifestUnknown."""
        ...


class Uploads(Protocol):
    """Resumable upload sessions (spec: "Pushing a blob in chunks"). A session outlives a restart."""

    async def start(self, repository: Repository, algorithm: str) -> str:
        """Open a session and return its identifier; raises TooManyUploads or StorageFull."""
        ...

    async def offset(self, repository: Repository, session: str) -> int:
        """Bytes held so far; raises UploadUnknown."""
        ...

    async def append(self, repository: Repository, session: str, offset: int | None, body: AsyncIterator[bytes]) -> int:
        """Append ``body`` and return the new offset. ``offset`` is where the client says that it starts (None: at the
        end). Bytes that came before an error are kept. Raises UploadUnknown, UploadRangeInvalid, StorageFull."""
        ...

    async def commit(self, repository: Repository, session: str, digest: Digest) -> Descriptor:
        """Verify, make durable, publish; raises DigestInvalid (the session is then gone) or UploadUnknown."""
        ...

    async def cancel(self, repository: Repository, session: str) -> None:
        """Drop the session; raises UploadUnknown."""
        ...

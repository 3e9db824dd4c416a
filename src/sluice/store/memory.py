"""The store's in-memory twin: the contracts in their plainest form.

Tests of everything above the store run on it, and ``testing.conformance`` holds it and ``LocalStore`` to the same
claims. Nothing here is durable, and nothing is collected.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from sluice.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    StoreDamaged,
    TooManyUploads,
    UploadRangeInvalid,
    UploadUnknown,
)
from sluice.oci.content import BlobReader, BlobWriter, Descriptor, Referrer
from sluice.oci.digest import HEX_LENGTH, Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.changes import GENERIC_MEDIA_TYPE
from sluice.store.events import Changes
from sluice.store.queries import TagEvent, Totals
from sluice.store.settings import StoreSettings


class MemoryBlob:
    """A ``BlobReader`` over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Whole length in bytes."""
        return len(self._data)

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; raises StoreDamaged where fewer are there."""
        if length <= 0:
            return b""
        if offset + length > len(self._data):
            raise StoreDamaged(f"blob has {len(self._data)} bytes, {length} were asked for from {offset}")
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to release."""


class _Contents:
    """Blobs and who may read them, shared by the store and its uploads."""

    def __init__(self) -> None:
        self.data: dict[Digest, bytes] = {}
        self.links: dict[Repository, set[Digest]] = {}

    def publish(self, repository: Repository, digest: Digest, data: bytes) -> Descriptor:
        self.data[digest] = data
        self.links.setdefault(repository, set()).add(digest)
        return Descriptor(GENERIC_MEDIA_TYPE, digest, len(data))


class MemoryUploads:
    """``Uploads`` over byte arrays."""

    def __init__(self, contents: _Contents, limit: int, events: Changes) -> None:
        self._contents = contents
        self._limit = limit
        self._events = events
        self._sessions: dict[str, tuple[Repository, bytearray]] = {}

    @property
    def count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    async def start(self, repository: Repository, algorithm: str) -> str:
        """Open a session; raises TooManyUploads or DigestInvalid."""
        if algorithm not in HEX_LENGTH:
            raise DigestInvalid(f"digest-algorithm {algorithm[:40]!r} is unknown: use one of {', '.join(HEX_LENGTH)}")
        if self.count >= self._limit:
            raise TooManyUploads(f"limits.uploads is {self._limit} and as many are open: finish or cancel one, or wait")
        identifier = secrets.token_hex(16)
        self._sessions[identifier] = (repository, bytearray())
        return identifier

    async def offset(self, repository: Repository, session: str) -> int:
        """Bytes held so far; raises UploadUnknown."""
        return len(self._find(repository, session))

    async def append(self, repository: Repository, session: str, offset: int | None, body: AsyncIterator[bytes]) -> int:
        """Append ``body`` and return the new offset; raises UploadUnknown, UploadRangeInvalid."""
        data = self._find(repository, session)
        if offset is not None and offset != len(data):
            raise UploadRangeInvalid(
                f"chunk starts at {offset} and the upload stands at {len(data)}: continue from there", offset=len(data)
            )
        async for chunk in body:
            data += chunk
        return len(data)

    async def commit(self, repository: Repository, session: str, digest: Digest) -> Descriptor:
        """Verify and publish; raises DigestInvalid (the session is then gone) or UploadUnknown."""
        data = bytes(self._find(repository, session))
        del self._sessions[session]
        actual = Digest.of(data, digest.algorithm)
        if actual != digest:
            raise DigestInvalid(f"the upload's {len(data)} bytes have digest {actual}, not {digest}: push them again")
        descriptor = self._contents.publish(repository, digest, data)
        self._events.notify(repository)
        return descriptor

    async def cancel(self, repository: Repository, session: str) -> None:
        """Drop the session; raises UploadUnknown."""
        self._find(repository, session)
        del self._sessions[session]

    def _find(self, repository: Repository, session: str) -> bytearray:
        owner, data = self._sessions.get(session, (None, bytearray()))
        if owner != repository:
            raise UploadUnknown(f"upload {session[:64]} does not exist in this repository: start a new one")
        return data


class MemoryBlobWriter:
    """``BlobWriter`` over a byte array."""

    def __init__(self, contents: _Contents, repository: Repository, events: Changes) -> None:
        self._contents = contents
        self._repository = repository
        self._events = events
        self._data = bytearray()

    @property
    def offset(self) -> int:
        """Bytes taken so far."""
        return len(self._data)

    async def write(self, data: Sequence[bytes]) -> None:
        """Append."""
        for chunk in data:
            self._data += chunk

    async def commit(self, digest: Digest) -> Descriptor:
        """Verify and publish in the repository; raises DigestInvalid (the content is then dropped)."""
        data, self._data = bytes(self._data), bytearray()
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestInvalid(f"{len(data)} bytes were written and their digest is not {digest}: push them again")
        descriptor = self._contents.publish(self._repository, digest, data)
        self._events.notify(self._repository)
        return descriptor

    async def abort(self) -> None:
        """Drop it; idempotent."""
        self._data = bytearray()


class MemoryStore:
    """``LocalStore`` without a disk: the same methods, the same errors."""

    def __init__(self, settings: StoreSettings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings or StoreSettings()
        self.clock = clock
        self.events = Changes()
        self._contents = _Contents()
        self.uploads = MemoryUploads(self._contents, self.settings.uploads_max, self.events)
        self._manifests: dict[Repository, dict[Digest, Manifest]] = {}
        self._tags: dict[Repository, dict[Tag, Digest]] = {}
        self._history: dict[tuple[Repository, Tag], list[TagEvent]] = {}

    async def start(self) -> None:
        """Listeners run in this event loop."""
        self.events.attach()

    async def close(self) -> None:
        """Nothing to finish."""
        self.events.detach()

    # Source

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """The manifest that a tag or digest names; raises NameUnknown or ManifestUnknown."""
        digest = reference if isinstance(reference, Digest) else self._tags.get(repository, {}).get(reference)
        if digest is None:
            self._require(repository)
            raise ManifestUnknown(f"tag {reference} does not exist in repository {repository}")
        return _descriptor(await self.manifest(repository, digest))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """The manifest; raises NameUnknown or ManifestUnknown."""
        found = self._manifests.get(repository, {}).get(digest)
        if found is None:
            self._require(repository)
            raise ManifestUnknown(f"manifest {digest} does not exist in repository {repository}")
        return found

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """Open a blob that this repository may read; raises BlobUnknown."""
        await self.stat_blob(repository, digest)
        return MemoryBlob(self._contents.data[digest])

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown."""
        self._require(repository)
        return sorted(tag for tag in self._tags.get(repository, {}) if tag > (last or ""))[:limit]

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """Manifests whose ``subject`` is this digest, in digest order; empty where there are none."""
        found = [one for one in self._manifests.get(repository, {}).values() if one.subject == subject]
        found.sort(key=lambda one: str(one.digest))
        return [Referrer(_descriptor(one), one.artifact_type, one.annotations) for one in found]

    # Sink

    async def begin_blob(self, repository: Repository) -> BlobWriter:
        """Start new content."""
        return MemoryBlobWriter(self._contents, repository, self.events)

    async def put_manifest(
        self, repository: Repository, reference: Reference, manifest: Manifest, actor: str
    ) -> Descriptor:
        """Keep a manifest; raises ManifestBlobUnknown or DigestInvalid."""
        if isinstance(reference, Digest) and reference != manifest.digest:
            raise DigestInvalid(f"reference is {reference} and the manifest's digest is {manifest.digest}")
        missing = self._missing(repository, manifest)
        if missing:
            raise ManifestBlobUnknown(
                f"manifest {manifest.digest} names {len(missing)} digests that {repository} does not hold",
                detail=missing,
            )
        self._manifests.setdefault(repository, {})[manifest.digest] = manifest
        if not isinstance(reference, Digest):
            self._move(repository, reference, manifest.digest, actor)
        self.events.notify(repository)
        return _descriptor(manifest)

    async def delete(self, repository: Repository, reference: Reference, actor: str) -> None:
        """Remove a tag, or a manifest with all tags on it; raises NameUnknown or ManifestUnknown."""
        await self.resolve(repository, reference)
        tags = self._tags.setdefault(repository, {})
        if isinstance(reference, Digest):
            del self._manifests[repository][reference]
            gone = [tag for tag, digest in tags.items() if digest == reference]
        else:
            gone = [reference]
        for tag in gone:
            self._move(repository, tag, None, actor)
        self.events.notify(repository)

    # Beyond the contracts

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        """What ``open_blob`` would open; raises BlobUnknown."""
        if digest not in self._contents.links.get(repository, ()):
            raise BlobUnknown(f"blob {digest} is not in repository {repository}")
        return Descriptor(GENERIC_MEDIA_TYPE, digest, len(self._contents.data[digest]))

    def touch(self, repository: Repository, digest: Digest) -> bool:
        """Always True: nothing is collected here."""
        return True

    async def mount(self, repository: Repository, source: Repository, digest: Digest) -> Descriptor | None:
        """Link a blob of ``source`` in ``repository``. None where ``source`` has none."""
        if digest not in self._contents.links.get(source, ()):
            return None
        descriptor = self._contents.publish(repository, digest, self._contents.data[digest])
        self.events.notify(repository)
        return descriptor

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """Take a blob from a repository; raises BlobUnknown."""
        await self.stat_blob(repository, digest)
        self._contents.links[repository].discard(digest)
        self.events.notify(repository)

    async def repositories(self, limit: int, last: str | None) -> Sequence[Repository]:
        """Up to ``limit`` repositories that hold a manifest, after ``last`` in byte order."""
        return sorted(name for name, held in self._manifests.items() if held and name > (last or ""))[:limit]

    async def tag_history(self, repository: Repository, tag: Tag) -> Sequence[TagEvent]:
        """Who moved the tag where, newest first; raises NameUnknown."""
        self._require(repository)
        return self._history.get((repository, tag), [])[::-1]

    async def totals(self) -> Totals:
        """What is held in all."""
        held = dict(self._contents.data)
        for manifests in self._manifests.values():
            held.update({digest: manifest.raw for digest, manifest in manifests.items()})
        return Totals(len(held), sum(map(len, held.values())), self.uploads.count)

    def writable(self) -> bool:
        """Always True."""
        return True

    def _require(self, repository: Repository) -> None:
        if repository not in self._manifests and repository not in self._contents.links:
            raise NameUnknown(f"repository {repository} does not exist")

    def _missing(self, repository: Repository, manifest: Manifest) -> list[str]:
        held = {
            "blob": self._contents.links.get(repository, set()),
            "manifest": set(self._manifests.get(repository, {})),
        }
        if self.settings.sparse_indexes:
            held["manifest"] |= {child.digest for child in manifest.children}
        absent = [one.digest for one in manifest.children if one.required and one.digest not in held[one.kind]]
        return list(dict.fromkeys(map(str, absent)))

    def _move(self, repository: Repository, tag: Tag, digest: Digest | None, actor: str) -> None:
        tags = self._tags.setdefault(repository, {})
        if tags.get(tag) == digest:
            return
        if digest is None:
            del tags[tag]
        else:
            tags[tag] = digest
        history = self._history.setdefault((repository, tag), [])
        history.append(TagEvent(digest, actor, self.clock()))
        del history[: max(0, len(history) - self.settings.history_per_tag)]


def _descriptor(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))

"""Where the handlers read, each answer with its provenance: the store, a cache before an upstream, or an upstream.

``modes`` chooses one of these for each mode (and with ``namespaces`` one for each upstream); handlers see the
``Fetcher`` alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from sluice.cache.answers import CacheCounters, Fetched, Kind, Provenance
from sluice.cache.policy import CachePolicy
from sluice.cache.pullthrough import PullThrough
from sluice.cache.readers import ThroughReader
from sluice.cache.sources import Mirrored
from sluice.errors import ManifestUnknown, NameUnknown, StoreDamaged
from sluice.oci.content import BlobReader, Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.local import LocalStore

if TYPE_CHECKING:
    from sluice.upstream.registry import RemoteRegistry

T = TypeVar("T")

_LOCAL = Provenance(Kind.LOCAL)
_UPSTREAM = Provenance(Kind.UPSTREAM)


class Fetcher(Protocol):
    """The reading side of a mode. Raises what a ``Source`` raises, or an UpstreamError."""

    async def fetch_descriptor(self, repository: Repository, reference: Reference) -> Fetched[Descriptor]:
        """What a tag or digest names."""
        ...

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Fetched[Manifest]:
        """A manifest by its digest."""
        ...

    async def fetch_named(self, repository: Repository, reference: Reference) -> Fetched[Manifest]:
        """The manifest that a tag or digest names: ``fetch_descriptor`` and ``fetch_manifest`` in one."""
        ...

    async def fetch_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> Fetched[BlobReader]:
        """A blob, to be read from about ``offset`` on; below 0 that counts from the end."""
        ...

    async def stat_blob(self, repository: Repository, digest: Digest) -> Fetched[int | None]:
        """A blob's size in bytes, without fetching it; None where nobody tells."""
        ...

    async def fetch_tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """Up to ``limit`` tags after ``last``."""
        ...

    async def fetch_referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """What refers to ``subject``."""
        ...


def _local(value: T) -> Fetched[T]:
    return Fetched(value, _LOCAL, math.inf)


class LocalFetcher:
    """The store alone: Local mode."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def fetch_descriptor(self, repository: Repository, reference: Reference) -> Fetched[Descriptor]:
        """As ``Fetcher``."""
        return _local(await self._store.resolve(repository, reference))

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        return _local(await self._store.manifest(repository, digest))

    async def fetch_named(self, repository: Repository, reference: Reference) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        described = await self._store.resolve(repository, reference)
        return _local(await self._store.manifest(repository, described.digest))

    async def fetch_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> Fetched[BlobReader]:
        """As ``Fetcher``."""
        return _local(await self._store.open_blob(repository, digest, offset))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Fetched[int | None]:
        """As ``Fetcher``."""
        return _local((await self._store.stat_blob(repository, digest)).size)

    async def fetch_tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """As ``Fetcher``."""
        return _local(await self._store.tags(repository, limit, last))

    async def fetch_referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """As ``Fetcher``."""
        return _local(await self._store.referrers(repository, subject))


class CacheFetcher(PullThrough):
    """An upstream through the store: Proxy mode."""

    async def fetch_named(self, repository: Repository, reference: Reference) -> Fetched[Manifest]:
        """As ``Fetcher``. For a tag, the provenance is that of what the tag names."""
        if isinstance(reference, Digest):
            return await self.fetch_manifest(repository, reference)
        described = await self.fetch_descriptor(repository, reference)
        with contextlib.suppress(ManifestUnknown, NameUnknown, StoreDamaged):
            # Not by ``fetch_manifest``: it is one answer and counts once.
            held = await self._store.manifest(repository, described.value.digest)
            return Fetched(held, described.provenance, described.fresh_s)
        found = await self.fetch_manifest(repository, described.value.digest)
        return Fetched(found.value, described.provenance, described.fresh_s)


class NamedRemote:
    """A ``Source``: an upstream whose repositories are called ``<place>/<its own name>`` here."""

    def __init__(self, upstream: RemoteRegistry, place: str) -> None:
        self.upstream = upstream
        self.place = place
        self._prefix = f"{place}/" if place else ""

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """As ``Source.resolve``."""
        return await self.upstream.resolve(self._own(repository), reference)

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """As ``Source.manifest``."""
        return await self.upstream.manifest(self._own(repository), digest)

    async def manifest_by_tag(self, repository: Repository, tag: Tag) -> Manifest:
        """As ``RemoteRegistry.manifest_by_tag``."""
        return await self.upstream.manifest_by_tag(self._own(repository), tag)

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """As ``Source.open_blob``."""
        return await self.upstream.open_blob(self._own(repository), digest, offset)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """As ``Source.tags``."""
        return await self.upstream.tags(self._own(repository), limit, last)

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """As ``Source.referrers``."""
        return await self.upstream.referrers(self._own(repository), subject)

    def _own(self, repository: Repository) -> Repository:
        return Repository(repository.removeprefix(self._prefix))


class DirectFetcher:
    """An upstream, asked for every answer: Direct mode. No wrong blob is ever passed on whole."""

    def __init__(self, upstream: NamedRemote, policy: CachePolicy, counters: CacheCounters) -> None:
        self._upstream = upstream
        self._blobs = Mirrored(upstream)
        self._policy = policy
        self._counters = counters

    async def fetch_descriptor(self, repository: Repository, reference: Reference) -> Fetched[Descriptor]:
        """As ``Fetcher``."""
        return self._asked(await self._upstream.resolve(repository, reference))

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        return self._asked(await self._upstream.manifest(repository, digest))

    async def fetch_named(self, repository: Repository, reference: Reference) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        if isinstance(reference, Digest):
            return await self.fetch_manifest(repository, reference)
        return self._asked(await self._upstream.manifest_by_tag(repository, reference))

    async def fetch_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> Fetched[BlobReader]:
        """As ``Fetcher``. From its start on it is verified; a part is for whoever puts it together to verify."""
        offset = max(offset, 0)
        hasher = digest.hasher() if offset == 0 else None
        openers = self._blobs.openers(repository, digest)
        reader = ThroughReader(openers, digest, self._counters, hasher=hasher, position=offset)
        try:
            await reader.open(self._policy.small_blob_bytes)
        except BaseException:
            reader.close()
            raise
        return self._asked(reader)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Fetched[int | None]:
        """As ``Fetcher``."""
        reader = await self._upstream.open_blob(repository, digest)
        reader.close()
        return self._asked(reader.size)

    async def fetch_tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """As ``Fetcher``."""
        return self._asked(await self._upstream.tags(repository, limit, last))

    async def fetch_referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """As ``Fetcher``."""
        return self._asked(await self._upstream.referrers(repository, subject))

    def _asked(self, value: T) -> Fetched[T]:
        self._counters.count(_UPSTREAM)
        return Fetched(value, _UPSTREAM)

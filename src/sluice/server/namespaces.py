"""Which upstream a request means, and under which name its content is held here.

A registry that is configured by name has a place of its own: ``docker.io/library/busybox`` in the store. A request
finds it by containerd's ``?ns=docker.io`` or by a path that begins with the name, as CRI-O and podman have it. All else
belongs to the default upstream, under the path as it is. In Local mode the names work alike, so that what was cached
is found after a switch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sluice.cache.answers import Fetched
from sluice.config import DOCKER_HUB, place_of
from sluice.oci.content import BlobReader, Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag, parse_repository
from sluice.server.fetchers import Fetcher

OFFICIAL = "library"
"""Where Docker Hub keeps what has a name of one word."""


class Names:
    """The configured registries by name: from a request's path and namespace to a repository of ours."""

    def __init__(self, registries: Iterable[str]) -> None:
        self._places = {name: place_of(name) for name in registries}
        self._taken = frozenset(self._places.values())

    def __bool__(self) -> bool:
        return bool(self._places)

    def locate(self, repository: Repository, namespace: str | None) -> Repository:
        """The repository that is meant; raises NameInvalid where its name is too long."""
        place, slash, inner = repository.partition("/")
        if not slash or place not in self._taken:
            named = self._places.get(namespace.lower()) if namespace else None
            if named is None:
                return repository
            place, inner = named, repository
        if place == DOCKER_HUB and "/" not in inner:
            inner = f"{OFFICIAL}/{inner}"
        return parse_repository(f"{place}/{inner}")


class Namespaces:
    """A ``Fetcher`` over several: one for each configured registry's place, and the default upstream's."""

    def __init__(self, default: Fetcher, places: Mapping[str, Fetcher]) -> None:
        self._default = default
        self._places = places

    def _of(self, repository: Repository) -> Fetcher:
        place, slash, _ = repository.partition("/")
        return self._places.get(place, self._default) if slash else self._default

    async def fetch_descriptor(self, repository: Repository, reference: Reference) -> Fetched[Descriptor]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_descriptor(repository, reference)

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_manifest(repository, digest)

    async def fetch_named(self, repository: Repository, reference: Reference) -> Fetched[Manifest]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_named(repository, reference)

    async def fetch_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> Fetched[BlobReader]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_blob(repository, digest, offset)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Fetched[int | None]:
        """As ``Fetcher``."""
        return await self._of(repository).stat_blob(repository, digest)

    async def fetch_tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_tags(repository, limit, last)

    async def fetch_referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """As ``Fetcher``."""
        return await self._of(repository).fetch_referrers(repository, subject)

"""``RemoteRegistry``: a remote registry, with its mirrors, as a ``Source``.

The top of this package: ``cache`` and the wiring of Direct mode know nothing else of it. It says which address is asked
and whose answer counts; ``endpoint`` and what lies below it do the asking.

The upstream's word on whether content exists is final, and so is its refusal of our credentials. A mirror is asked only
when the upstream cannot be, and then a mirror that lacks the content proves nothing: the upstream's failure is the
answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamError, UpstreamUnauthorized
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.upstream import listing, manifests
from sluice.upstream.blob import Opened, RemoteBlob, open_at
from sluice.upstream.endpoint import Endpoint, is_silence
from sluice.upstream.exchange import Clients
from sluice.upstream.prober import Prober
from sluice.upstream.rate import RateLimit
from sluice.upstream.settings import CredentialSettings, UpstreamSettings
from sluice.upstream.trust import load_trust

T = TypeVar("T")


class RemoteRegistry:
    """Raises ConfigInvalid at once where a file of the settings cannot be used; asks the upstream nothing until asked.

    ``clock`` is in seconds and does not run backwards. Belongs to one event loop.
    """

    def __init__(self, settings: UpstreamSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clients = Clients(settings, load_trust(settings))
        self._clock = clock
        home = Endpoint(settings.address, settings, settings.credentials, self._clients, clock)
        mirrors = [
            Endpoint(address, settings, settings.mirror_credentials, self._clients, clock)
            for address in settings.mirrors
        ]
        self._endpoints = [home, *mirrors]
        self._probers = [Prober(endpoint, clock) for endpoint in self._endpoints]

    @property
    def rate_limit(self) -> RateLimit | None:
        """What the upstream last told of its quota, for metrics."""
        return self._endpoints[0].rate_limit

    @property
    def is_broken(self) -> bool:
        """Whether the upstream itself is taken for dead just now, for metrics and health."""
        return self._endpoints[0].breaker.is_open

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """The manifest that a tag or digest names; raises NameUnknown, ManifestUnknown or an UpstreamError."""
        return await self._first(lambda endpoint: manifests.resolve(endpoint, repository, reference))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """The manifest's exact bytes, verified; raises NameUnknown, ManifestUnknown or an UpstreamError."""
        return await self._first(lambda endpoint: manifests.fetch(endpoint, repository, digest))

    async def manifest_by_tag(self, repository: Repository, tag: Tag) -> Manifest:
        """What a tag names now, in one request; its digest is the upstream's own, or sha256."""
        return await self._first(lambda endpoint: manifests.fetch(endpoint, repository, tag))

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> RemoteBlob:
        """Returns when the upstream has answered 200 or 206; raises BlobUnknown or an UpstreamError."""
        reopen = partial(self._open, repository, digest)
        return RemoteBlob(await reopen(offset), reopen)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """Up to ``limit`` tags after ``last`` in byte order; raises NameUnknown or an UpstreamError."""
        return await self._first(lambda endpoint: listing.tags(endpoint, repository, limit, last))

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """Manifests whose ``subject`` is this digest, in digest order; empty where there are none."""
        return await self._first(lambda endpoint: listing.referrers(endpoint, repository, subject))

    async def admits(self, repository: Repository, reference: Reference | None, who: CredentialSettings | None) -> None:
        """Return where the upstream itself, no mirror, lets somebody have a manifest, or without ``reference`` the list
        of tags: asked with ``who`` for credentials (None: with ours). Raises what it answers."""
        async with self._as(who) as endpoint:
            if reference is None:
                await listing.tags(endpoint, repository, 1, None)
            else:
                await manifests.resolve(endpoint, repository, reference)

    async def admits_blob(self, repository: Repository, digest: Digest, who: CredentialSettings | None) -> None:
        """``admits`` for a blob, of which no body is read."""
        async with self._as(who) as endpoint:
            opened = await open_at(endpoint, repository, digest, 0)
            if opened.response is not None:
                opened.response.close()

    @asynccontextmanager
    async def _as(self, who: CredentialSettings | None) -> AsyncIterator[Endpoint]:
        home = self._endpoints[0]
        if who is None:
            yield home
            return
        endpoint = Endpoint(home.address, self.settings, who, self._clients, self._clock, home.breaker)
        try:
            yield endpoint
        finally:
            await endpoint.close()

    async def is_silent(self) -> bool:
        """Ask the upstream itself, and no mirror, whether it is there; without asking where it is known to be dead."""
        try:
            await self._endpoints[0].ping()
        except UpstreamError as error:
            return is_silence(error)
        return False

    async def close(self) -> None:
        """End all transfers; readers that are open raise UpstreamFailed."""
        for prober in self._probers:
            await prober.close()
        for endpoint in self._endpoints:
            await endpoint.close()
        await self._clients.close()

    async def _open(self, repository: Repository, digest: Digest, offset: int) -> Opened:
        return await self._first(lambda endpoint: open_at(endpoint, repository, digest, offset))

    async def _first(self, ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        home, *mirrors = self._endpoints
        try:
            return await ask(home)
        except UpstreamUnauthorized:
            raise
        except UpstreamError as error:
            failure = error
        for mirror in mirrors:
            try:
                return await ask(mirror)
            except (UpstreamError, BlobUnknown, ManifestUnknown, NameUnknown):
                continue
        raise failure

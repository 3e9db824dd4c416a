"""An upstream with its fallback mirrors, as one ``Source`` and as the openers of a fill.

A mirror is asked when the one before it could not be. It is believed in what it has and not in what it lacks: that
there is no such thing is the upstream's own to say, so what is raised is always the upstream's error.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sluice.cache.policy import CachePolicy
from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamError
from sluice.oci.content import BlobReader, Descriptor, Referrer, Source
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag

C = TypeVar("C")
T = TypeVar("T")

PAUSE_S_MAX = 5.0

Opener = Callable[[int], Awaitable[BlobReader]]
"""Open an upstream's blob, to be read from this offset on."""

ABSENT = (BlobUnknown, ManifestUnknown, NameUnknown)
"""What a registry says about content that it does not have."""


class Mirrored:
    """A ``Source``: ``upstream`` first, then ``mirrors`` in order."""

    def __init__(self, upstream: Source, mirrors: Sequence[Source] = ()) -> None:
        self._sources = (upstream, *mirrors)

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """As ``Source.resolve``."""
        return await self._first(lambda source: source.resolve(repository, reference))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """As ``Source.manifest``."""
        return await self._first(lambda source: source.manifest(repository, digest))

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """As ``Source.open_blob``."""
        return await self._first(lambda source: source.open_blob(repository, digest, offset))

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """As ``Source.tags``."""
        return await self._first(lambda source: source.tags(repository, limit, last))

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """As ``Source.referrers``."""
        return await self._first(lambda source: source.referrers(repository, subject))

    def openers(self, repository: Repository, digest: Digest) -> Sequence[Opener]:
        """One for each source, in order, for a fill that changes between them as it goes."""

        def opener(source: Source) -> Opener:
            return lambda offset: source.open_blob(repository, digest, offset)

        return [opener(source) for source in self._sources]

    async def _first(self, ask: Callable[[Source], Awaitable[T]]) -> T:
        return await _first(self._sources, ask)


async def open_first(openers: Sequence[Opener], offset: int) -> BlobReader:
    """Open the blob at the first upstream that lets us; raises the first one's error."""
    return await _first(openers, lambda opener: opener(offset))


async def _first(choices: Sequence[C], ask: Callable[[C], Awaitable[T]]) -> T:
    upstream, *mirrors = choices
    try:
        return await ask(upstream)
    except UpstreamError as error:
        for mirror in mirrors:
            with contextlib.suppress(UpstreamError, *ABSENT):
                return await ask(mirror)
        raise error from None


def pause_s(rounds: int, policy: CachePolicy) -> float:
    """Doubling with each round of upstream and mirrors, and never the same for two fills that broke off together."""
    pause_s: float = policy.fill_pause_s * 2 ** (rounds - 1)
    return min(PAUSE_S_MAX, pause_s) * random.uniform(0.5, 1.0)

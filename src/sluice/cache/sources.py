"""An upstream with its fallback mirrors, as one ``Source`` and as the openers of a fill.

A mirror is asked when the one before it could not be. It is believed in what it has and not in what it lacks: that
there is no such thing is the upstream's own to say, so what is raised is always the upstream's error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamError
from sluice.oci.content import BlobReader, Descriptor, Referrer, Source
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag

C = TypeVar("C")
T = TypeVar("T")

Opener = Callable[[int], Awaitable[BlobReader]]
"""Open an upstream's blob, to be read from this offset on."""

ABSENT = (BlobUnknown, ManifestUnknown, NameUnknown)
"""What a registry says about content that it does not have."""


BATCH_PIECES_MAX = 256
PIECE_BYTES_MAX = 512 << 10


@runtime_checkable
class Flowing(Protocol):
    """A reader that hands out bytes as they come, uncopied."""

    async def read_next(self, limit: int) -> bytes:
        """The next bytes, up to ``limit``; empty at the end."""


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


async def next_batch(reader: BlobReader, position: int, want: int, patience_s: float) -> tuple[Sequence[bytes], bool]:
    """About ``want`` bytes from ``position``, where ``reader`` stands, and whether the blob ends behind them: fewer
    where more takes longer than ``patience_s``, and up to a piece more, which is not cut."""
    if not isinstance(reader, Flowing):
        data = await reader.read(position, want)
        return ([data] if data else []), len(data) < want
    now = asyncio.get_running_loop().time
    until = now() + patience_s
    batch: list[bytes] = []
    held = 0
    while held < want and len(batch) < BATCH_PIECES_MAX:
        piece = await reader.read_next(PIECE_BYTES_MAX)
        if not piece:
            return batch, True
        batch.append(piece)
        held += len(piece)
        if now() >= until:
            break
    return batch, False


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

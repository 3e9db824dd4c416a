"""One mode, wired: where requests read and write, and what is closed when the last of them is over.

A request takes the registry's current wiring at its beginning and keeps it to its end. So another one can take its
place at any moment: what runs goes on with the old one, which closes when nobody uses it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Literal, Protocol

from sluice.cache.answers import Fetched, Kind, Provenance
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.server.entitlement import Entitlement
from sluice.server.fetchers import Fetcher
from sluice.server.hot import HotManifests
from sluice.server.namespaces import Names
from sluice.store.local import LocalStore

if TYPE_CHECKING:
    from sluice.upstream.registry import RemoteRegistry

Mode = Literal["local", "proxy", "direct"]
Headers = list[tuple[bytes, bytes]]

_STALE = (b"warning", b'110 - "Response is Stale"')  # RFC 9111 section 5.5, and RFC 7234 before it


class Finish(Protocol):
    """Waits for the end of what goes on without a request: all of it, or what concerns these blobs."""

    def __call__(self, digests: Collection[Digest] | None = None) -> Awaitable[None]:
        """Return when none of it runs any more."""
        ...


async def _nothing(digests: Collection[Digest] | None = None) -> None:
    return


class Wiring:
    """``fetcher`` reads; ``sink`` takes writes, None where this mode has none; ``held`` is the store that the catalog
    lists, None where nothing is kept. ``hot`` is this wiring's alone, so that no other one's answers are given.

    ``upstreams`` by registry name, the default one's name being its address. ``finish`` waits for what goes on without
    a request, ``close`` ends everything.
    """

    def __init__(
        self,
        mode: Mode,
        fetcher: Fetcher,
        store: LocalStore | None,
        hot: HotManifests,
        names: Names,
        upstreams: dict[str, RemoteRegistry] | None = None,
    ) -> None:
        self.mode: Mode = mode
        self.fetcher = fetcher
        self.sink = store if mode == "local" else None
        self.held = store
        self.hot = hot
        self.names = names
        self.upstreams = upstreams or {}
        self.marks: Headers = [(b"sluice-mode", mode.encode())]
        self.finish: Finish = _nothing
        self.end: Callable[[], Awaitable[None]] = _nothing
        self.entitlement: Entitlement | None = None
        self.requests = 0
        self._idle = asyncio.Event()
        self._closed = False

    def enter(self) -> None:
        """One more request runs on this wiring."""
        self.requests += 1

    def leave(self) -> None:
        """One request less."""
        self.requests -= 1
        if not self.requests:
            self._idle.set()

    def marked(self, provenance: Provenance) -> Headers:
        """The headers that say where an answer came from."""
        value = provenance.kind.value.encode()
        if provenance.reason is not None:
            value += b'; reason="' + provenance.reason.encode() + b'"'
        marks = [*self.marks, (b"sluice-cache", value)]
        return [*marks, _STALE] if provenance.kind is Kind.STALE else marks

    def marked_hot(self, fetched: Fetched[Manifest]) -> Headers:
        """The same for when the answer is given again from memory."""
        local = fetched.provenance.kind is Kind.LOCAL
        return self.marked(Provenance(Kind.LOCAL if local else Kind.HIT))

    async def retire(self) -> None:
        """Close when the last request and all that it began are over. For a wiring that no new request takes."""
        while self.requests:
            self._idle.clear()
            await self._idle.wait()
        await self.finish()
        await self.close()

    async def close(self) -> None:
        """End all that runs; idempotent."""
        if not self._closed:
            await self.end()
            self._closed = True  # not before: who is cancelled half-way leaves the rest to the next one

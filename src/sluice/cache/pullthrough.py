"""The pull-through cache: a ``Source`` over the local store and an upstream.

What is held is served from the store, and no upstream is asked. What is not comes through a fill (blobs,
``cache.fill``) or a flight (everything small, ``cache.flights``), once for all who ask at the same time. What the
upstream says about tags is kept in the store's index, so that it is served stale when the upstream cannot be asked, and
after a restart too. The decisions are those of ``cache.policy``.

The ``fetch_…`` methods say where the answer came from; the ``Source`` methods are the same without that.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from sluice.cache.absences import Absences
from sluice.cache.answers import Fetched, Kind, Provenance
from sluice.cache.fill import Fill
from sluice.cache.fills import Fills
from sluice.cache.flights import Flights
from sluice.cache.listings import Listings
from sluice.cache.policy import BlobAction, BlobFacts, CachePolicy, decide_blob, needs_proof
from sluice.cache.readers import FillReader, ThroughReader
from sluice.cache.recent import Recent
from sluice.cache.sources import ABSENT, Mirrored
from sluice.cache.tags import ACTOR, Tags
from sluice.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    SluiceError,
    StoreDamaged,
    UpstreamError,
    UpstreamInvalid,
)
from sluice.oci.content import BlobReader, Descriptor, Referrer, Source
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.local import LocalStore

T = TypeVar("T")

PROOFS_MAX = 10_000  # (repository, digest) that an upstream was asked about
PROOF_S = 60.0
PREFETCH_MAX = 64  # blobs of one manifest
FAR = "far ahead of the fill"

_log = logging.getLogger(__name__)


class PullThrough:
    """``upstream`` with its ``mirrors``, through ``store``. ``fills`` is shared by all caches over one store."""

    def __init__(
        self,
        store: LocalStore,
        upstream: Source,
        fills: Fills,
        *,
        mirrors: Sequence[Source] = (),
        policy: CachePolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy or fills.policy
        self.counters = fills.counters
        self._store = store
        self._upstream = Mirrored(upstream, mirrors)
        self._fills = fills
        self._flights = Flights()
        self._absences = Absences(self.policy.negative_s, clock, self.counters)
        self._proofs: Recent[tuple[Repository, Digest], bool] = Recent(PROOFS_MAX, PROOF_S, clock)
        self._listings = Listings(store, self._upstream, self._flights, self.policy, clock)
        self._tags = Tags(store, self._learn, self._flights, self.policy, self.counters, clock)

    # Source

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        """As ``Source.resolve``; raises an UpstreamError for what is not known here."""
        return (await self.fetch_descriptor(repository, reference)).value

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """As ``Source.manifest``; raises an UpstreamError for what is not held."""
        return (await self.fetch_manifest(repository, digest)).value

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        """As ``Source.open_blob``; raises an UpstreamError for what is not held."""
        return (await self.fetch_blob(repository, digest, offset)).value

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        """As ``Source.tags``; raises an UpstreamError where nothing is known."""
        return (await self.fetch_tags(repository, limit, last)).value

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        """As ``Source.referrers``; raises an UpstreamError where nothing is known."""
        return (await self.fetch_referrers(repository, subject)).value

    # With their provenance

    async def fetch_descriptor(self, repository: Repository, reference: Reference) -> Fetched[Descriptor]:
        """``resolve``. What it names is then held here, room permitting."""
        if isinstance(reference, Digest):
            self._store.use(repository, reference)
            with contextlib.suppress(ManifestUnknown, NameUnknown):
                return self._counted(await self._store.resolve(repository, reference), Kind.HIT, fresh_s=math.inf)
            found = await self.fetch_manifest(repository, reference)
            return Fetched(_describe(found.value), found.provenance, found.fresh_s)
        with self._absences.noted("manifest", repository, reference):
            fetched = await self._tags.fetch(repository, reference)
        self._store.use(repository, fetched.value.digest)
        self.counters.count(fetched.provenance)
        return fetched

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Fetched[Manifest]:
        """``manifest``."""
        self._store.use(repository, digest)
        with contextlib.suppress(ManifestUnknown, NameUnknown, StoreDamaged):
            return self._counted(await self._store.manifest(repository, digest), Kind.HIT, fresh_s=math.inf)
        key = (repository, str(digest))
        kind = Kind.JOINED if self._flights.flying(key) else Kind.UPSTREAM
        deadline_s = self.policy.head_deadline_s
        with self._absences.noted("manifest", repository, digest):
            found = await self._flights.ask(key, lambda: self._bring_manifest(repository, digest), deadline_s)
        return self._counted(found, kind, fresh_s=math.inf)

    async def fetch_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> Fetched[BlobReader]:
        """``open_blob``. Below 0, ``offset`` counts from the end."""
        damaged = False
        try:
            if self._store.use(repository, digest):
                return self._counted(await self._store.open_blob(repository, digest), Kind.HIT)
        except StoreDamaged:
            damaged = True
        except BlobUnknown:
            pass
        with self._absences.noted("blob", repository, digest):
            running = self._fills.find(digest)
            if running is not None:
                running.attach()  # before the first wait: it may end meanwhile
            try:
                return await self._fetch_missing(repository, digest, offset, (running, damaged))
            finally:
                if running is not None:
                    running.detach()

    async def stat_blob(self, repository: Repository, digest: Digest) -> Fetched[int | None]:
        """The size of a blob, in bytes, without fetching it; None where the upstream does not tell."""
        with contextlib.suppress(BlobUnknown):
            return self._counted((await self._store.stat_blob(repository, digest)).size, Kind.HIT)
        running = self._fills.find(digest)
        if running is not None and running.size is not None and repository in running.repositories:
            return self._counted(running.size, Kind.JOINED)
        with self._absences.noted("blob", repository, digest):
            reader = await self._upstream.open_blob(repository, digest)
        self._proofs.put((repository, digest), True)
        reader.close()
        return self._counted(reader.size, Kind.UPSTREAM)

    async def pin(self, repository: Repository, tag: Tag) -> Descriptor:
        """Nail the tag to what it names now, fetched where it is not held: it neither moves nor leaves the cache, and
        what it names stays. Raises what ``resolve`` raises."""
        descriptor = (await self.fetch_descriptor(repository, tag)).value
        await self._store.pin_tag(repository, tag, True)
        return descriptor

    async def unpin(self, repository: Repository, tag: Tag) -> None:
        """Let the tag go; raises NameUnknown or ManifestUnknown."""
        await self._store.pin_tag(repository, tag, False)

    async def fetch_tags(self, repository: Repository, limit: int, last: str | None) -> Fetched[Sequence[Tag]]:
        """``tags``."""
        fetched = await self._listings.tags(repository, limit, last)
        self.counters.count(fetched.provenance)
        return fetched

    async def fetch_referrers(self, repository: Repository, subject: Digest) -> Fetched[Sequence[Referrer]]:
        """``referrers``."""
        fetched = await self._listings.referrers(repository, subject)
        self.counters.count(fetched.provenance)
        return fetched

    async def close(self) -> None:
        """End what is being asked; the fills have their own end. Idempotent."""
        await self._flights.close()

    # Blobs

    async def _fetch_missing(
        self, repository: Repository, digest: Digest, offset: int, found: tuple[Fill | None, bool]
    ) -> Fetched[BlobReader]:
        """A blob that cannot simply be opened: the facts, the decision, the deed."""
        running, damaged = found
        standing = await self._store.standing(repository, digest)
        held = standing.held and not damaged
        running = running if running is not None and running.error is None else self._fills.find(digest)
        ours = running is not None and repository in running.repositories
        filling = None if running is None else running.position
        proven = self._proofs.get((repository, digest)) is not None
        named = standing.named and (standing.kin or self._is_kin(running, repository))
        facts = BlobFacts(held, standing.linked or named or ours or proven, filling, max(offset, 0))
        if needs_proof(facts):
            await self._prove(repository, digest)
            facts = BlobFacts(held, True, filling, max(offset, 0))
        action = decide_blob(facts, self.policy)
        if action is BlobAction.LOCAL:
            with contextlib.suppress(StoreDamaged, BlobUnknown):
                if await self._store.link(repository, digest):
                    return self._counted(await self._store.open_blob(repository, digest), Kind.HIT)
            damaged = True
        openers = self._upstream.openers(repository, digest)
        begin = partial(self._fills.begin, digest, repository, openers, lane=self._upstream)
        if running is None or running.error is not None:
            running = begin(replace=damaged)
        running.join(repository)
        if action is BlobAction.BYPASS:
            return await self._go_past(repository, digest, offset, FAR)
        kind = Kind.JOINED if action is BlobAction.JOIN else Kind.STARTED
        try:
            return await self._read_fill(running, repository, kind, offset)
        except (UpstreamError, *ABSENT):
            if running.error is None or running.repositories[0] == repository:
                raise
        # Another repository's upstream failed; this one's own has not been asked.
        return await self._read_fill(begin(replace=damaged), repository, Kind.STARTED, offset)

    def _is_kin(self, fill: Fill | None, repository: Repository) -> bool:
        """Whether the fill is of the repository's own upstream."""
        return fill is not None and self._store.word(repository) in map(self._store.word, fill.repositories)

    async def _read_fill(self, fill: Fill, repository: Repository, kind: Kind, offset: int) -> Fetched[BlobReader]:
        fill.attach()
        try:
            begun = await fill.turn()
            if begun:
                await fill.head()
        except SluiceError as error:
            fill.detach()
            if not fill.refused:
                raise
            self.counters.unkept += 1
            _log.warning("blob %s is passed through and not kept: %s", fill.digest, error.message)
            return await self._go_past(repository, fill.digest, 0, "no room to keep it")
        except BaseException:
            fill.detach()
            raise
        start = offset if offset >= 0 else max((fill.size or 0) + offset, 0)
        far = begun and fill.is_far(start)
        if begun and not far:
            return self._counted(FillReader(fill), kind)
        fill.detach()
        return await self._go_past(repository, fill.digest, start, FAR if far else "queue")

    async def _go_past(self, repository: Repository, digest: Digest, offset: int, reason: str) -> Fetched[BlobReader]:
        """Straight from the upstream. From its start on it is verified."""
        hasher = digest.hasher() if offset == 0 else None
        openers = self._upstream.openers(repository, digest)
        reader = ThroughReader(openers, digest, self.counters, hasher=hasher, position=offset)
        try:
            await reader.open(self.policy.small_blob_bytes)
        except BaseException:
            reader.close()
            raise
        return self._counted(reader, Kind.BYPASS, reason)

    async def _prove(self, repository: Repository, digest: Digest) -> None:
        """Ask the repository's own upstream whether it has the blob that another repository brought."""
        reader = await self._upstream.open_blob(repository, digest)
        reader.close()
        self._proofs.put((repository, digest), True)

    # Manifests

    async def _learn(self, repository: Repository, tag: Tag) -> Descriptor:
        """Ask the upstream what the tag names, and have that here; raises what the upstream answers."""
        descriptor = await self._upstream.resolve(repository, tag)
        try:
            held = await self._store.resolve(repository, descriptor.digest)
        except (ManifestUnknown, NameUnknown):
            return _describe(await self._bring_tagged(repository, descriptor.digest, tag))
        with self._unkept_allowed(f"tag {tag} of {repository}"):
            await self._store.confirm_tag(repository, tag, held.digest, ACTOR)
        return held

    async def _bring_tagged(self, repository: Repository, digest: Digest, tag: Tag) -> Manifest:
        """What the upstream says that the tag names. Where it does not have that, it contradicts itself, which says
        nothing about the tag."""
        try:
            return await self._bring_manifest(repository, digest, tag)
        except (ManifestUnknown, NameUnknown) as error:
            raise UpstreamInvalid(
                f"the upstream says that {tag} of {repository} is {digest}, and does not have that: {error.message}"
            ) from None

    async def _bring_manifest(self, repository: Repository, digest: Digest, tag: Tag | None = None) -> Manifest:
        """From the upstream, verified, and kept where there is room."""
        manifest = await self._upstream.manifest(repository, digest)
        if Digest.of(manifest.raw, digest.algorithm) != digest:
            self.counters.invalid += 1
            raise UpstreamInvalid(f"the upstream sent other bytes than those of manifest {digest} of {repository}")
        self.counters.upstream_bytes += len(manifest.raw)
        with self._unkept_allowed(f"manifest {digest} of {repository}"):
            await self._keep_manifest(repository, manifest, tag)
            if self.policy.prefetch:
                await self._prefetch(repository, manifest)
        return manifest

    async def _keep_manifest(self, repository: Repository, manifest: Manifest, tag: Tag | None) -> None:
        """Raises StorageFull. While it is let in, what names it does not leave for it."""
        if self._fills.space is None:
            await self._store.cache_manifest(repository, manifest, tag, ACTOR)
            return
        with self._store.leases.held(repository, manifest.digest):
            grant = await self._fills.space.admit(len(manifest.raw))
            try:
                await self._store.cache_manifest(repository, manifest, tag, ACTOR)
            finally:
                grant.release()

    async def _prefetch(self, repository: Repository, manifest: Manifest) -> None:
        """Begin to fetch what an image names. Only as many as the fills have room for: who asks comes first."""
        blobs = {child.digest for child in manifest.children if child.kind == "blob" and child.required}
        for digest in sorted(blobs)[:PREFETCH_MAX]:
            if len(self._fills) >= self._fills.policy.fills_max:
                return
            if self._fills.find(digest) is None and not (await self._store.standing(repository, digest)).held:
                openers = self._upstream.openers(repository, digest)
                self._fills.begin(digest, repository, openers, lane=self._upstream)
                self.counters.fills_prefetched += 1

    @contextlib.contextmanager
    def _unkept_allowed(self, what: str) -> Iterator[None]:
        """What the store cannot keep is served all the same."""
        try:
            yield
        except SluiceError as error:
            self.counters.unkept += 1
            _log.warning("%s is passed through and not kept: %s", what, error.message)

    def _counted(self, value: T, kind: Kind, reason: str | None = None, fresh_s: float = 0.0) -> Fetched[T]:
        fetched = Fetched(value, Provenance(kind, reason), fresh_s)
        self.counters.count(fetched.provenance)
        return fetched


def _describe(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))

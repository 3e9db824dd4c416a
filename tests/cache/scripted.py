"""An upstream that does what a test tells it to, and a cache before it that leaves nothing behind.

``Upstream`` is a ``Source``. Each opening of a blob takes the next ``Body`` of its script, the last one for ever: where
it is cut, where it waits, whether it tells its size, which bit is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sluice.cache.answers import CacheCounters
from sluice.cache.fills import Fills
from sluice.cache.policy import CachePolicy
from sluice.cache.pullthrough import PullThrough
from sluice.cache.space import Reach, Space, SpaceSettings
from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown, SluiceError, UpstreamFailed
from sluice.oci.content import BlobReader, Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository, Tag
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings

APP = Repository("team/app")
OTHER = Repository("team/other")
LATEST = Tag("latest")
POLICY = CachePolicy(fill_pause_s=0.001)
PATIENCE_S = 20.0  # for what must happen; never reached by a test that passes


class Clock:
    """Time that stands until it is moved."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Body:
    """One opening of a blob. ``refuse``: instead of a head. ``cut_at``: no byte from here on comes, but ``error``.
    ``stop_at``: bytes from here on wait for ``gate``. ``end_at``: it ends here, and says so. ``flip_at``: this byte is
    wrong. ``sized``: it tells its length. ``head``: is waited for before the head."""

    refuse: SluiceError | None = None
    cut_at: int | None = None
    error: SluiceError = field(default_factory=lambda: UpstreamFailed("the connection broke"))
    stop_at: int | None = None
    gate: asyncio.Event | None = None
    end_at: int | None = None
    flip_at: int | None = None
    sized: bool = True
    head: asyncio.Event | None = None


class ScriptedReader:
    """A ``BlobReader`` over one ``Body``."""

    def __init__(self, data: bytes, body: Body, upstream: Upstream) -> None:
        wrong = body.flip_at
        self._data = data if wrong is None else data[:wrong] + bytes([data[wrong] ^ 1]) + data[wrong + 1 :]
        self._body = body
        self._upstream = upstream
        self._open = True
        upstream.open_readers += 1

    @property
    def size(self) -> int | None:
        return len(self._data) if self._body.sized else None

    async def read(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        self._upstream.watch()
        body, end = self._body, offset + length
        if body.stop_at is not None and body.gate is not None and end > body.stop_at:
            await body.gate.wait()
        if body.cut_at is not None and end > body.cut_at:
            raise body.error
        data = self._data[: body.end_at][offset:end]
        self._upstream.sent_bytes += len(data)
        return data

    def close(self) -> None:
        if self._open:
            self._open = False
            self._upstream.open_readers -= 1


class Upstream:
    """A ``Source`` with a script. ``error`` is raised by whatever is asked, where it is set. ``asked`` counts.
    ``watch`` is called at each read of a body."""

    watch: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.scripts: dict[Digest, list[Body]] = {}
        self.manifests: dict[Digest, Manifest] = {}
        self.names: dict[tuple[Repository, Tag], Digest] = {}
        self.referring: list[Referrer] = []
        self.error: SluiceError | None = None
        self.gate: asyncio.Event | None = None
        self.asked: Counter[str] = Counter()
        self.offsets: list[int] = []
        self.open_readers = 0
        self.sent_bytes = 0

    def add_blob(self, data: bytes, *script: Body) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest] = data
        self.scripts[digest] = list(script) or [Body()]
        return digest

    def add_image(self, manifest: Manifest, *blobs: bytes, tag: Tag = LATEST, repository: Repository = APP) -> Manifest:
        for data in blobs:
            self.add_blob(data)
        self.manifests[manifest.digest] = manifest
        self.names[repository, tag] = manifest.digest
        return manifest

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        await self._ask("resolve")
        digest = reference if isinstance(reference, Digest) else self.names.get((repository, reference))
        if digest is None or digest not in self.manifests:
            raise ManifestUnknown(f"{reference} is unknown")
        found = self.manifests[digest]
        return Descriptor(found.media_type, digest, len(found.raw))

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest:
        await self._ask("manifest")
        if digest not in self.manifests:
            raise ManifestUnknown(f"{digest} is unknown")
        return self.manifests[digest]

    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> BlobReader:
        await self._ask("open")
        if digest not in self.blobs:
            raise BlobUnknown(f"{digest} is unknown")
        self.offsets.append(offset)
        script = self.scripts[digest]
        body = script.pop(0) if len(script) > 1 else script[0]
        if body.head is not None:
            await body.head.wait()
        if body.refuse is not None:
            raise body.refuse
        return ScriptedReader(self.blobs[digest], body, self)

    async def tags(self, repository: Repository, limit: int, last: str | None) -> Sequence[Tag]:
        await self._ask("tags")
        found = sorted(tag for where, tag in self.names if where == repository and tag > (last or ""))
        if not found:
            raise NameUnknown(f"{repository} is unknown")
        return found[:limit]

    async def referrers(self, repository: Repository, subject: Digest) -> Sequence[Referrer]:
        await self._ask("referrers")
        return self.referring

    async def _ask(self, what: str) -> None:
        self.asked[what] += 1
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Cache:
    """A cache in a directory of its own, with what stands behind it."""

    upstream: Upstream
    mirror: Upstream
    store: LocalStore
    fills: Fills
    pull: PullThrough
    clock: Clock
    unreachable: set[str] = field(default_factory=set)

    @property
    def space(self) -> Space:
        assert self.fills.space is not None
        return self.fills.space

    def disk_bytes(self) -> int:
        """What contents of the upstream's and spools take on the disk."""
        paths = [self.store.paths.content(digest) for digest in (*self.upstream.blobs, *self.upstream.manifests)]
        total = 0
        for path in (*paths, *self.store.paths.uploads.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.suffix != ".json" else 0
        return total

    @property
    def counters(self) -> CacheCounters:
        return self.fills.counters

    def uploads(self) -> list[str]:
        """What is in the store's spool directory."""
        return sorted(os.listdir(self.store.paths.uploads))

    def contents(self) -> set[str]:
        """The names of all content files."""
        return {path.name for path in self.store.paths.contents.rglob("*") if path.is_file()}

    def open_files(self) -> list[str]:
        """The files of content and spools that this process has open."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:  # the listing's own
                continue
            if target.startswith((str(self.store.paths.uploads), str(self.store.paths.contents))):
                found.append(target)
        return found

    async def idle(self) -> None:
        """Until no fill runs or waits."""
        await until(lambda: len(self.fills) == 0)

    async def restart(self, **changed: object) -> None:
        """Another cache over the same store, as after a restart or with other settings."""
        await self.pull.close()
        policy = replace(self.pull.policy, **changed)  # type: ignore[arg-type]
        self.pull = PullThrough(
            self.store, self.upstream, self.fills, mirrors=[self.mirror], policy=policy, clock=self.clock
        )


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def caching(
    data: Path,
    policy: CachePolicy = POLICY,
    space: SpaceSettings | None = None,
    clock: Clock | None = None,
    **settings: int,
) -> AsyncIterator[Cache]:
    """A cache; afterwards no task, no spool, no open file and no lease is left, or the test fails."""
    before = asyncio.all_tasks()
    clock = clock or Clock()
    values = StoreSettings(**{"reserve_bytes": 0, **settings})  # type: ignore[arg-type]
    store = LocalStore.open(data, values, clock)
    counters, unreachable = CacheCounters(), set[str]()
    reach = Reach(unreachable=lambda: unreachable)
    fills = Fills(store, policy, counters, clock, None if space is None else Space(store, space, reach))
    upstream, mirror = Upstream(), Upstream()
    mirror.error = UpstreamFailed("the mirror is not set up")
    pull = PullThrough(store, upstream, fills, mirrors=[mirror], policy=policy, clock=clock)
    cache = Cache(upstream, mirror, store, fills, pull, clock, unreachable)
    try:
        yield cache
        await cache.idle()
        assert (0, 0) == (cache.counters.fills_active, cache.counters.fills_queued)
    finally:
        await cache.pull.close()
        await fills.close()
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - before - {asyncio.current_task()}
        left = cache.uploads(), cache.open_files(), tasks, upstream.open_readers
        leases = len(store.leases)
        await store.close()
    assert (([], [], set(), 0), 0) == (left, leases)


async def read_all(reader: BlobReader, slice_bytes: int = 32_768, start: int = 0) -> bytes:
    """Read to the end as the server does, and close."""
    parts: list[bytes] = []
    position = start
    try:
        while reader.size is None or position < reader.size:
            want = slice_bytes if reader.size is None else min(slice_bytes, reader.size - position)
            data = await reader.read(position, want)
            parts.append(data)
            position += len(data)
            if not data:
                break
    finally:
        reader.close()
    return b"".join(parts)

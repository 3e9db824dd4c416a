"""A cache with a budget over any history of pulls, pins, openings, outages and restarts.

The model knows what must not leave: what was held of pinned and protected images, and of what is read. It watches the
disk itself at every read of a body, so that not even for a moment more is there than may be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cache.scripted import APP, OTHER, POLICY, Body, Cache, Clock, Upstream, caching, read_all
from sluice.cache.chunks import CHUNK_BYTES_MAX
from sluice.cache.readers import ThroughReader
from sluice.cache.space import Reach, SpaceSettings
from sluice.errors import ImageKept, ManifestUnknown, NameUnknown, UpstreamError
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.eviction import unlink_unread
from sluice.store.images import HeldImage
from sluice.testing.content import image, index

T = TypeVar("T")

MAX_BYTES = 400_000
TTL_S = 50_000.0
_random = random.Random(6)
LAYERS = [_random.randbytes(size) for size in (1_000, 30_000, 90_000, 120_000, 150_000, 160_000, 390_000, 900_000)]
IMAGES = {"a": (0, 1), "b": (1, 2), "c": (2, 3), "d": (4,), "e": (0, 5), "f": (3, 6), "g": (7,)}
TAGS = [*IMAGES, "all"]
NAMES = st.tuples(st.sampled_from([APP, OTHER]), st.sampled_from(TAGS).map(Tag))


def stock(upstream: Upstream) -> None:
    """Every image in both repositories, and one index over two of them."""
    for repository in (APP, OTHER):
        made = {}
        for name, layers in IMAGES.items():
            config = f'{{"of": "{name}"}}'.encode()
            blobs = [LAYERS[number] for number in layers]
            made[name] = upstream.add_image(image(config, *blobs), config, *blobs, tag=Tag(name), repository=repository)
        upstream.add_image(index(made["a"], made["d"]), tag=Tag("all"), repository=repository)


class CacheHistory(RuleBasedStateMachine):
    """One data directory through its history."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = TemporaryDirectory()
        self.clock = Clock()
        self.stack = AsyncExitStack()
        self.reading: list[tuple[BlobReader, Repository, Digest, int]] = []
        self.kept: dict[str, frozenset[str]] = {}
        self.read: set[tuple[str, str]] = set()
        self.pins: set[tuple[Repository, Tag]] = set()
        self.protected: set[str] = set()
        self.most = 0
        self.run(self._open())

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    async def _open(self) -> None:
        settled = replace(POLICY, tag_fresh_s=1e9, negative_s=0.0)
        space = SpaceSettings(MAX_BYTES, TTL_S)
        data = Path(self.directory.name) / "data"
        self.cache: Cache = await self.stack.enter_async_context(caching(data, settled, space, self.clock))
        stock(self.cache.upstream)
        self.cache.upstream.watch = self._watch

    def _watch(self) -> None:
        """The promise: no more than the budget, and one chunk for each fill."""
        here = self.cache.disk_bytes()
        allowed = MAX_BYTES + CHUNK_BYTES_MAX * self.cache.counters.fills_active
        assert here <= allowed
        assert here <= MAX_BYTES or self.cache.counters.fills_active
        self.most = max(self.most, here)

    async def _pull(self, repository: Repository, tag: Tag) -> None:
        cache, upstream = self.cache, self.cache.upstream
        manifests = [await cache.pull.manifest(repository, (await cache.pull.resolve(repository, tag)).digest)]
        for manifest in manifests:
            for child in manifest.children:
                if child.kind == "manifest":
                    manifests.append(await cache.pull.manifest(repository, child.digest))
                    continue
                standing = await cache.store.standing(repository, child.digest)
                before = upstream.asked["open"]
                data = await read_all(await cache.pull.open_blob(repository, child.digest))
                assert Digest.of(data) == child.digest
                asked = upstream.asked["open"] > before
                assert asked or standing.held
                assert not (asked and standing.linked)
        await cache.idle()

    @rule(name=NAMES, passed_s=st.integers(0, 10))
    def pull(self, name: tuple[Repository, Tag], passed_s: int) -> None:
        """A whole pull gives the right bytes; what is held is not fetched, and what was evicted is fetched again."""
        self.clock.now += passed_s
        self.run(self._pull(*name))

    @rule(names=st.lists(NAMES, min_size=2, max_size=4))
    def pull_together(self, names: list[tuple[Repository, Tag]]) -> None:
        """Pulls at the same time share the budget."""

        async def together() -> None:
            await asyncio.gather(*(self._pull_quietly(*name) for name in names))
            await self.cache.idle()

        self.run(together())

    async def _pull_quietly(self, repository: Repository, tag: Tag) -> None:
        pull = self.cache.pull
        manifest = await pull.manifest(repository, (await pull.resolve(repository, tag)).digest)
        for child in manifest.children:
            if child.kind == "blob":
                data = await read_all(await pull.open_blob(repository, child.digest))
                assert Digest.of(data) == child.digest

    @rule(layer=st.integers(0, len(LAYERS) - 1), sized=st.booleans(), cut=st.none() | st.integers(0, 100_000))
    def pull_blob(self, layer: int, sized: bool, cut: int | None) -> None:
        """A blob alone, of which the upstream may not tell the size, and which may break off once."""
        data = LAYERS[layer]
        script = [Body(sized=sized)] if cut is None else [Body(sized=sized, cut_at=cut), Body(sized=sized)]
        digest = self.cache.upstream.add_blob(data, *script)

        async def read() -> None:
            try:
                assert data == await read_all(await self.cache.pull.open_blob(APP, digest))
            except UpstreamError:
                assert cut is not None  # passed through, it breaks off with the upstream
            await self.cache.idle()

        self.run(read())

    @precondition(lambda self: len(self.reading) < 3)
    @rule(repository=st.sampled_from([APP, OTHER]), layer=st.integers(0, len(LAYERS) - 1))
    def open(self, repository: Repository, layer: int) -> None:
        """Begin to read, and stay."""
        digest = Digest.of(LAYERS[layer])

        async def begin() -> BlobReader:
            reader = await self.cache.pull.open_blob(repository, digest)
            await self.cache.idle()
            return reader

        self.reading.append((self.run(begin()), repository, digest, layer))

    @precondition(lambda self: self.reading)
    @rule()
    def close(self) -> None:
        """The reader that came first reads to its end: all of it is there, whatever happened since."""
        reader, repository, digest, layer = self.reading.pop(0)
        self.read.discard((repository, str(digest)))
        assert LAYERS[layer] == self.run(read_all(reader))

    @rule(name=NAMES)
    def pin(self, name: tuple[Repository, Tag]) -> None:
        """Pin a tag; with its manifest passed through for want of room there is nothing to pin."""
        try:
            self.run(self.cache.pull.pin(*name))
        except (ManifestUnknown, NameUnknown):
            return
        self.pins.add(name)

    @rule(which=st.integers(0, 99))
    def unpin(self, which: int) -> None:
        """Unpin one."""
        if not self.pins:  # no precondition: whether there was room to pin depends on threads
            return
        name = sorted(self.pins)[which % len(self.pins)]
        self.run(self.cache.pull.unpin(*name))
        self.pins.discard(name)

    @rule(names=st.lists(NAMES, max_size=2))
    def protect(self, names: list[tuple[Repository, Tag]]) -> None:
        """A controller names what it needs, in place of what it named before."""
        self.protected = {f"{repository}:{tag}" for repository, tag in names}
        self.run(self.cache.space.protect(self.protected))

    @rule(passed_s=st.sampled_from([1.0, 1_000.0, TTL_S / 2, TTL_S * 2]), down=st.booleans())
    def sweep(self, passed_s: float, down: bool) -> None:
        """Time passes, in an outage or not."""
        (self.cache.unreachable.add if down else self.cache.unreachable.discard)("")
        self.clock.now += passed_s
        self.run(self.cache.space.sweep())

    @rule(which=st.integers(0, 99))
    def purge(self, which: int) -> None:
        """An operator wants one image gone; what must stay is refused."""
        images = self.run(self.cache.space.holdings()).images
        if not images:
            return
        chosen = sorted(images, key=lambda one: (one.repository, one.digest))[which % len(images)]
        read = {str(digest) for _, repository, digest, _ in self.reading if repository == chosen.repository}
        try:
            self.run(self.cache.space.purge(chosen))
        except ImageKept:
            assert self._must_stay(chosen) or chosen.digests & read
        else:
            assert not self._must_stay(chosen)

    @precondition(lambda self: not self.reading)
    @rule()
    def restart(self) -> None:
        """Everything that counts survives a restart."""
        before = self.run(self.cache.space.status())
        self.run(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.run(self._open())
        assert before == replace(self.run(self.cache.space.status()), free_bytes=before.free_bytes)

    def _must_stay(self, one: HeldImage) -> bool:
        names = {(one.repository, tag) for tag in one.tags}
        named = {f"{repository}:{tag}" for repository, tag in names}
        return bool(names & self.pins or named & self.protected)

    @invariant()
    def nothing_that_must_stay_has_left(self) -> None:
        """What was held of images that must stay is held, as long as they must; and the disk is within its bounds."""
        self._watch()
        assert self.cache.counters.fills_active == 0
        images = {f"{one.repository}@{one.digest}": one for one in self.run(self.cache.space.holdings()).images}
        for name, digests in self.kept.items():
            assert name in images
            assert digests <= images[name].held
        held = {(one.repository, digest) for one in images.values() for digest in one.held}
        assert self.read <= held
        self.read = {
            (str(repository), str(digest))
            for reader, repository, digest, _ in self.reading
            if not isinstance(reader, ThroughReader)  # which needs nothing of the store
        } & held
        self.kept = {name: one.held for name, one in images.items() if self._must_stay(one) and not one.blob}
        self._compare_files()

    def _compare_files(self) -> None:
        """The files are those of the rows; of what was evicted while somebody looked at it, none once nobody does."""
        store = self.cache.store
        sizes = self.run(self.cache.space.holdings()).sizes
        waiting = store.index.read(lambda index: dict(index.execute("SELECT digest, size FROM condemned")))
        known = (*self.cache.upstream.blobs, *self.cache.upstream.manifests)
        paths = {str(digest): store.paths.content(digest) for digest in known}
        files = {digest: path.stat().st_size for digest, path in paths.items() if path.exists()}
        assert {**sizes, **waiting} == files
        if waiting:
            unlink_unread(store)
            left = store.index.read(lambda index: {row[0] for row in index.execute("SELECT digest FROM condemned")})
            assert left <= store.leases.digests()
            assert not any(paths[digest].exists() for digest in waiting.keys() - left)

    def teardown(self) -> None:
        for reader, *_ in self.reading:
            reader.close()
        try:
            self.run(self.stack.aclose())
        finally:
            self.runner.close()
            self.directory.cleanup()


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def check(examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        CacheHistory,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=SLOW,
            phases=phases,
        ),
    )


def test_the_budget_and_what_must_stay() -> None:
    """The budget is never passed by more than a chunk for each fill, nothing pinned, protected or in use leaves, every
    byte served is its digest's, and the counts survive restarts."""
    check(20, 25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_budget_and_what_must_stay_at_length() -> None:
    """The same, many more times."""
    check(200, 50)


def test_the_model_is_a_machine() -> None:
    """A machine of hypothesis runs the rules above, and ``Reach`` stands still without upstreams."""
    assert issubclass(CacheHistory, RuleBasedStateMachine)
    nothing: Any = Reach()
    assert ("", ()) == (nothing.upstream_of("x"), tuple(nothing.unreachable()))

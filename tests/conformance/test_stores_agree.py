"""What both stores do beyond the contracts: history, mounts, counts, the catalog, and who is told when."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sluice.errors import (
    BlobUnknown,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
)
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Repository, Tag
from sluice.store.local import LocalStore
from sluice.store.memory import MemoryStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, index, push_blob

Store = LocalStore | MemoryStore
HERE, THERE = Repository("team/here"), Repository("team/there")
LATEST = Tag("latest")


class Clock:
    """Time that stands until it is moved."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def with_store(
    data: Path,
    work: Callable[[LocalStore], Awaitable[None]],
    clock: Callable[[], float] | None = None,
    **settings: float,
) -> None:
    """Run ``work`` on the started store in ``data`` and close it."""

    async def run() -> None:
        values = StoreSettings(**{"reserve_bytes": 0, **settings})  # type: ignore[arg-type]
        store = LocalStore.open(data, values, clock) if clock else LocalStore.open(data, values)
        await store.start()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


async def push_image(store: Store, repository: Repository, tag: Tag) -> Manifest:
    config, layer = secrets.token_bytes(30), secrets.token_bytes(300)
    await push_blob(store, repository, config)
    await push_blob(store, repository, layer)
    manifest = image(config, layer)
    await store.put_manifest(repository, tag, manifest, "alice")
    return manifest


def each_store(data: Path, work: Callable[[Store], Awaitable[None]], clock: Clock, **settings: float) -> None:
    """Run ``work`` on both stores."""
    with_store(data, work, clock, **settings)
    values = StoreSettings(**settings)  # type: ignore[arg-type]
    asyncio.run(_run(work, MemoryStore(values, clock)))


async def _run(work: Callable[[Store], Awaitable[None]], store: Store) -> None:
    await work(store)


def test_history_tells_who_moved_a_tag(tmp_path: Path) -> None:
    """Each move and the deletion is a row, newest first; pushing what is there already is none; the bound holds."""
    clock = Clock()

    async def work(store: Store) -> None:
        first = await push_image(store, HERE, LATEST)
        clock.now += 1
        second = await push_image(store, HERE, LATEST)
        clock.now += 1
        await store.put_manifest(HERE, LATEST, second, "bob")
        await store.put_manifest(HERE, LATEST, first, "bob")
        await store.delete(HERE, LATEST, "carol")
        found = [(event.digest, event.actor, event.at) for event in await store.tag_history(HERE, LATEST)]
        assert found == [
            (None, "carol", clock.now),
            (first.digest, "bob", clock.now),
            (second.digest, "alice", clock.now - 1),
        ]
        assert list(await store.tag_history(HERE, Tag("other"))) == []
        with pytest.raises(NameUnknown):
            await store.tag_history(THERE, LATEST)

    each_store(tmp_path, work, clock, history_per_tag=3)


def test_mount_links_without_bytes(tmp_path: Path) -> None:
    """A blob of another repository is linked and counted once; what that one may not read is None; the link holds when
    the other one goes."""

    async def work(store: Store) -> None:
        blob = await push_blob(store, HERE, b"layer")
        assert await store.mount(THERE, HERE, Digest.of(b"absent")) is None
        assert await store.mount(HERE, THERE, blob.digest) is None
        with pytest.raises(BlobUnknown):
            await store.stat_blob(THERE, blob.digest)
        assert await store.mount(THERE, HERE, blob.digest) == blob
        await store.delete_blob(HERE, blob.digest)
        with pytest.raises(BlobUnknown):
            await store.delete_blob(HERE, blob.digest)
        assert await store.stat_blob(THERE, blob.digest) == blob
        assert ((await store.totals()).contents, (await store.totals()).bytes) == (1, 5)

    each_store(tmp_path, work, Clock())


def test_totals_count_each_content_once(tmp_path: Path) -> None:
    """Contents and bytes are those of distinct digests, manifests included; open uploads are counted."""

    async def work(store: Store) -> None:
        manifest = await push_image(store, HERE, LATEST)
        await store.put_manifest(HERE, Tag("again"), manifest, "alice")
        await store.uploads.start(HERE, "sha256")
        found = await store.totals()
        assert (found.contents, found.bytes, found.uploads) == (3, 330 + len(manifest.raw), 1)

    each_store(tmp_path, work, Clock())


def test_repositories_with_manifests_are_listed(tmp_path: Path) -> None:
    """The catalog is in byte order, paged, and leaves out a repository that holds blobs only."""

    async def work(store: Store) -> None:
        for name in ("b", "a/x", "a"):
            await push_image(store, Repository(name), LATEST)
        await push_blob(store, Repository("blobs/only"), b"x")
        assert list(await store.repositories(10, None)) == ["a", "a/x", "b"]
        assert list(await store.repositories(1, "a")) == ["a/x"]
        assert list(await store.repositories(0, None)) == []

    each_store(tmp_path, work, Clock())


def test_sparse_indexes_are_a_setting(tmp_path: Path) -> None:
    """An index with a missing manifest is refused by default and accepted when set; a missing blob never is."""

    async def work(store: Store) -> None:
        absent, present = image(b"absent"), await push_image(store, HERE, LATEST)
        with pytest.raises(ManifestBlobUnknown):
            await store.put_manifest(HERE, absent.digest, absent, "alice")
        if not store.settings.sparse_indexes:
            with pytest.raises(ManifestBlobUnknown):
                await store.put_manifest(HERE, Tag("all"), index(absent, present), "alice")
            return
        await store.put_manifest(HERE, Tag("all"), index(absent, present), "alice")
        assert (await store.resolve(HERE, Tag("all"))).digest == index(absent, present).digest

    each_store(tmp_path / "strict", work, Clock())
    each_store(tmp_path / "sparse", work, Clock(), sparse_indexes=True)


def test_listeners_have_heard_when_the_client_is_answered(tmp_path: Path) -> None:
    """Every write that readers of a repository can see is heard before it returns, with its repository; one that was
    refused is not."""

    async def work(store: Store) -> None:
        heard: list[Repository] = []
        store.events.on_change(heard.append)
        manifest = await push_image(store, HERE, LATEST)
        assert heard == [HERE] * 3
        blob = manifest.children[0].digest
        steps: tuple[tuple[Callable[[], Awaitable[object]], Repository], ...] = (
            (lambda: store.mount(THERE, HERE, blob), THERE),
            (lambda: store.put_manifest(HERE, Tag("other"), manifest, "alice"), HERE),
            (lambda: store.delete(HERE, Tag("other"), "alice"), HERE),
            (lambda: store.delete(HERE, manifest.digest, "alice"), HERE),
            (lambda: store.delete_blob(THERE, blob), THERE),
        )
        for step, repository in steps:
            heard.clear()
            await step()
            assert heard == [repository]
        heard.clear()
        with pytest.raises(ManifestUnknown):
            await store.delete(HERE, LATEST, "alice")
        with pytest.raises(BlobUnknown):
            await store.delete_blob(THERE, blob)
        assert heard == []

    each_store(tmp_path, work, Clock())

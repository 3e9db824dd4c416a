"""What a cache needs of the store: tails, partial manifests, links, and what the upstream said about tags."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sluice.errors import BlobUnknown, ManifestBlobUnknown, ManifestUnknown, NameUnknown, UploadUnknown
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.store.cached import CachedTag, Standing
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, push_blob

APP, OTHER, THIRD = (Repository(f"team/{name}") for name in ("app", "other", "third"))
LATEST = Tag("latest")
DATA = os.urandom(700_000)
DIGEST = Digest.of(DATA)
IMAGE = image(b"{}", DATA)
NEWER = image(b"{}", DATA, annotations={"newer": "yes"})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def with_store(data: Path, work: Callable[[LocalStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = LocalStore.open(data, StoreSettings(reserve_bytes=0), CLOCK)
        try:
            await work(store)
        finally:
            await store.close()

    CLOCK.now = 1000.0
    asyncio.run(run())


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_a_spool_is_read_while_it_grows(tmp_path: Path, ending: str) -> None:
    """A tail reads what was written so far, and goes on reading when the spool has become content or is gone."""

    async def work(store: LocalStore) -> None:
        writer = await store.begin_spool(APP, "sha256")
        with pytest.raises(UploadUnknown):
            await writer.tail()
        await writer.write([DATA[:1000]])
        tail = await writer.tail()
        assert tail.size is None
        assert await tail.read(0, 1000) == DATA[:1000]
        await writer.write([DATA[1000:]])
        assert await tail.read(500, 600_000) == DATA[500:600_500]
        await (writer.commit(DIGEST) if ending == "commit" else writer.abort())
        assert await tail.read(0, len(DATA)) == DATA
        tail.close()
        assert os.listdir(store.paths.uploads) == []

    with_store(tmp_path, work)


def test_a_spool_does_not_outlive_its_process(tmp_path: Path) -> None:
    """What a process left of a spool is gone when the next one opens the store; a client's session stays."""

    async def leave(store: LocalStore) -> None:
        await (await store.begin_spool(APP, "sha256")).write([DATA])
        await store.uploads.start(APP, "sha256")
        assert store.uploads.count == 2

    async def find(store: LocalStore) -> None:
        assert (1, 1) == (store.uploads.count, len(os.listdir(store.paths.uploads)))

    with_store(tmp_path, leave)
    with_store(tmp_path, find)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_spool_is_committed_in_several_repositories(tmp_path: Path, algorithm: str) -> None:
    """One commit makes a blob readable in all repositories that it names, and in no other."""

    async def work(store: LocalStore) -> None:
        digest = Digest.of(DATA, algorithm)
        writer = await store.begin_spool(APP, algorithm)
        await writer.write([DATA])
        await writer.commit_in(digest, [OTHER])
        for repository in (APP, OTHER):
            assert (await store.stat_blob(repository, digest)).size == len(DATA)
        with pytest.raises(BlobUnknown):
            await store.stat_blob(THIRD, digest)

    with_store(tmp_path, work)


def test_a_commit_replaces_what_is_damaged(tmp_path: Path) -> None:
    """With ``replace`` a file of the right size with wrong bytes is replaced; without, it is taken for intact."""

    async def work(store: LocalStore) -> None:
        await push_blob(store, APP, DATA)
        path = store.paths.content(DIGEST)
        path.write_bytes(bytes(len(DATA)))
        for replace, expected in ((False, bytes(len(DATA))), (True, DATA)):
            writer = await store.begin_spool(APP, "sha256")
            await writer.write([DATA])
            await writer.commit_in(DIGEST, [], replace=replace)
            assert path.read_bytes() == expected

    with_store(tmp_path, work)


def test_a_session_whose_client_goes_away_at_once_leaves_nothing(tmp_path: Path) -> None:
    """A start that is cancelled at any moment leaves no note and no session."""

    async def work(store: LocalStore) -> None:
        for turns in range(8):
            starting = asyncio.create_task(store.uploads.start(APP, "sha256"))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            got = (await asyncio.gather(starting, return_exceptions=True))[0]
            if isinstance(got, str):
                await store.uploads.cancel(APP, got)
        assert ([], 0) == (os.listdir(store.paths.uploads), store.uploads.count)

    with_store(tmp_path, work)


def test_a_manifest_may_come_before_its_blobs(tmp_path: Path) -> None:
    """A cache's manifest is readable with nothing that it names; a push of the same is still refused until all is
    there."""

    async def work(store: LocalStore) -> None:
        await store.cache_manifest(APP, IMAGE, None, "upstream")
        assert await store.manifest(APP, IMAGE.digest) == IMAGE
        with pytest.raises(ManifestUnknown):
            await store.resolve(APP, LATEST)
        with pytest.raises(ManifestBlobUnknown):
            await store.put_manifest(APP, LATEST, IMAGE, "somebody")
        for blob in (b"{}", DATA):
            await push_blob(store, APP, blob)
        await store.put_manifest(APP, LATEST, IMAGE, "somebody")
        assert (await store.resolve(APP, LATEST)).digest == IMAGE.digest

    with_store(tmp_path, work)


def test_how_a_blob_stands_to_a_repository(tmp_path: Path) -> None:
    """Held, linked and named are told apart; what is held can be linked, what is not cannot."""

    async def work(store: LocalStore) -> None:
        assert await store.standing(APP, DIGEST) == Standing(linked=False, held=False, named=False, kin=False)
        assert not await store.link(APP, DIGEST)
        await store.cache_manifest(APP, IMAGE, None, "upstream")
        assert await store.standing(APP, DIGEST) == Standing(linked=False, held=False, named=True, kin=False)
        await push_blob(store, OTHER, DATA)
        assert await store.standing(APP, DIGEST) == Standing(linked=False, held=True, named=True, kin=True)
        assert await store.standing(THIRD, DIGEST) == Standing(linked=False, held=True, named=False, kin=False)
        assert await store.link(APP, DIGEST)
        assert await store.standing(APP, DIGEST) == Standing(linked=True, held=True, named=True, kin=True)
        assert (await store.stat_blob(APP, DIGEST)).size == len(DATA)

    with_store(tmp_path, work)


def test_what_the_upstream_said_is_remembered(tmp_path: Path) -> None:
    """A tag's row says when the upstream last spoke and whether the tag was gone; a push or a deletion ends that."""

    async def said(store: LocalStore) -> tuple[Digest, float | None, bool, bool]:
        found = await store.cached_tag(APP, LATEST)
        assert isinstance(found, CachedTag)
        return found.descriptor.digest, found.checked_at, found.gone, found.pinned

    async def work(store: LocalStore) -> None:
        assert await store.cached_tag(APP, LATEST) is None
        await store.cache_manifest(APP, IMAGE, LATEST, "upstream")
        assert await said(store) == (IMAGE.digest, 1000.0, False, False)
        CLOCK.now = 2000.0
        await store.tag_gone(APP, LATEST)
        assert await said(store) == (IMAGE.digest, 2000.0, True, False)
        CLOCK.now = 3000.0
        await store.confirm_tag(APP, LATEST, IMAGE.digest, "upstream")
        assert await said(store) == (IMAGE.digest, 3000.0, False, False)
        for blob in (b"{}", DATA):
            await push_blob(store, APP, blob)
        await store.put_manifest(APP, LATEST, NEWER, "somebody")
        assert await said(store) == (NEWER.digest, None, False, False)
        await store.delete(APP, LATEST, "somebody")
        await store.put_manifest(APP, LATEST, IMAGE, "somebody")
        assert await said(store) == (IMAGE.digest, None, False, False)
        await store.drop_tag(APP, LATEST, "upstream")
        assert await store.cached_tag(APP, LATEST) is None

    with_store(tmp_path, work)


def test_a_pin_holds_a_tag(tmp_path: Path) -> None:
    """A pinned tag is neither moved nor dropped by what the upstream says; only a tag that exists can be pinned."""

    async def work(store: LocalStore) -> None:
        with pytest.raises(NameUnknown):
            await store.pin_tag(APP, LATEST, True)
        await store.cache_manifest(APP, IMAGE, LATEST, "upstream")
        await store.pin_tag(APP, LATEST, True)
        await store.cache_manifest(APP, NEWER, LATEST, "upstream")
        await store.drop_tag(APP, LATEST, "upstream")
        assert (await store.resolve(APP, LATEST)).digest == IMAGE.digest
        await store.pin_tag(APP, LATEST, False)
        await store.cache_manifest(APP, NEWER, LATEST, "upstream")
        assert (await store.resolve(APP, LATEST)).digest == NEWER.digest

    with_store(tmp_path, work)

"""The local store beyond the contracts: what survives, what heals, and what a full disk stops."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sluice.errors import (
    BlobUnknown,
    DataDirectoryBusy,
    ManifestBlobUnknown,
    NameUnknown,
    StorageFull,
    StoreDamaged,
    Unavailable,
)
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Repository, Tag
from sluice.store import local
from sluice.store.local import COMMIT_THREADS, LocalStore
from sluice.store.memory import MemoryStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import body, image, push_blob

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


def test_everything_acknowledged_survives_kill(tmp_path: Path) -> None:
    """A process that is killed right after its last answer leaves a store that has it all."""
    code = """
import asyncio, os, signal, sys
from pathlib import Path
from sluice.oci.reference import Repository, Tag
from sluice.store.local import COMMIT_THREADS, LocalStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import body, image, push_blob

async def main():
    store = LocalStore.open(Path(sys.argv[1]), StoreSettings(reserve_bytes=0))
    await store.start()
    here = Repository("team/here")
    await push_blob(store, here, b"config")
    await push_blob(store, here, b"layer")
    await store.put_manifest(here, Tag("latest"), image(b"config", b"layer"), "alice")
    session = await store.uploads.start(here, "sha256")
    await store.uploads.append(here, session, 0, body(b"half"))
    print(session, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -9

    async def work(store: LocalStore) -> None:
        expected = image(b"config", b"layer")
        assert await store.manifest(HERE, (await store.resolve(HERE, LATEST)).digest) == expected
        reader = await store.open_blob(HERE, Digest.of(b"layer"))
        assert await reader.read(0, reader.size or 0) == b"layer"
        reader.close()
        assert await store.uploads.offset(HERE, done.stdout.decode().strip()) == 4

    with_store(tmp_path, work)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The directory is refused while it is open, also to the same process, and free again after ``close``."""

    async def work(store: LocalStore) -> None:
        with pytest.raises(DataDirectoryBusy, match=rf"process {os.getpid()}\b"):
            LocalStore.open(tmp_path, store.settings)

    with_store(tmp_path, work)
    with_store(tmp_path, work)


def test_a_failed_opening_lets_go_of_the_directory(tmp_path: Path) -> None:
    """After a refused opening the lock is free: the error is about the index, not about ourselves."""
    with_store(tmp_path, _nothing)
    (tmp_path / "index.sqlite").write_bytes(b"\xff" * 4096)
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            LocalStore.open(tmp_path, StoreSettings())


def test_a_closed_store_is_unavailable(tmp_path: Path) -> None:
    """Whatever a late request asks for after ``close``, the answer is temporary trouble, not a crash."""

    async def run() -> None:
        store = LocalStore.open(tmp_path, StoreSettings(reserve_bytes=0))
        manifest, blob = await push_image(store, HERE, LATEST), Digest.of(b"layer")
        session = await store.uploads.start(HERE, "sha256")
        await store.close()
        await store.close()
        late: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: store.resolve(HERE, LATEST),
            lambda: store.manifest(HERE, manifest.digest),
            lambda: store.open_blob(HERE, blob),
            lambda: store.put_manifest(HERE, LATEST, manifest, "alice"),
            lambda: store.delete(HERE, LATEST, "alice"),
            lambda: store.uploads.start(HERE, "sha256"),
            lambda: store.uploads.append(HERE, session, 0, body(b"x")),
            lambda: store.uploads.commit(HERE, session, blob),
        )
        for request in late:
            with pytest.raises(Unavailable):
                await request()

    asyncio.run(run())


async def _nothing(store: LocalStore) -> None:
    assert (await store.totals()).contents == 0


def _wait_until_idle(store: LocalStore) -> None:
    """Occupy all committing threads at once: whatever a cancelled request left running there is done then."""
    meeting = threading.Barrier(COMMIT_THREADS)
    for job in [store._committers.submit(meeting.wait, 30) for _ in range(COMMIT_THREADS)]:
        job.result(30)


def test_a_client_that_leaves_leaves_no_stale_cache(tmp_path: Path) -> None:
    """A write whose client goes away before the answer is heard all the same, if it took place."""

    async def work(store: LocalStore) -> None:
        manifest = await push_image(store, HERE, LATEST)
        heard: list[Repository] = []
        store.events.on_change(heard.append)
        for number in range(8):
            heard.clear()
            tag = Tag(f"t{number}")
            task = asyncio.create_task(store.put_manifest(HERE, tag, manifest, "alice"))
            await asyncio.sleep(0.001 * (number % 4))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(_wait_until_idle, store)
            await asyncio.sleep(0)
            moved = tag in await store.tags(HERE, 100, None)
            assert heard == [HERE] * moved

    with_store(tmp_path, work)


def test_touches_reach_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A touch raises ``touched_at`` of the link without anybody calling for it, and again when the store is closed."""
    monkeypatch.setattr(local, "FLUSH_INTERVAL_S", 0.02)
    clock = Clock()
    blob = Digest.of(b"layer")

    def touched(store: LocalStore) -> float:
        return float(store.index.read(lambda c: c.execute("SELECT touched_at FROM links").fetchone()[0]))

    async def work(store: LocalStore) -> None:
        await push_blob(store, HERE, b"layer")
        clock.now += 100
        assert store.touch(HERE, blob) is True
        async with asyncio.timeout(60):
            while touched(store) != clock.now:
                await asyncio.sleep(0.01)
        clock.now += 100
        store.touch(HERE, blob)

    async def check(store: LocalStore) -> None:
        assert touched(store) == clock.now

    with_store(tmp_path, work, clock)
    with_store(tmp_path, check, clock)


def test_a_touch_that_cannot_be_written_is_kept(tmp_path: Path) -> None:
    """A flush that fails gives its touches back for the next one."""

    async def work(store: LocalStore) -> None:
        await push_blob(store, HERE, b"layer")
        store.touch(HERE, Digest.of(b"layer"))
        await store.index.write(lambda c: c.execute("DROP TABLE manifests"))
        with pytest.raises(StoreDamaged):
            await store.flush_touches()
        assert len(store.touches) == 1

    async def run() -> None:
        store = LocalStore.open(tmp_path, StoreSettings(reserve_bytes=0))
        await work(store)
        await store.close()

    asyncio.run(run())


def test_a_push_of_a_held_manifest_heals_its_file(tmp_path: Path) -> None:
    """A lost manifest file is StoreDamaged to readers, and the next push of the same manifest brings it back."""

    async def work(store: LocalStore) -> None:
        manifest = await push_image(store, HERE, LATEST)
        store.paths.content(manifest.digest).unlink()
        with pytest.raises(StoreDamaged):
            await store.manifest(HERE, manifest.digest)
        await store.put_manifest(HERE, LATEST, manifest, "alice")
        assert await store.manifest(HERE, manifest.digest) == manifest

    with_store(tmp_path, work)


def test_a_lost_blob_is_asked_for_again(tmp_path: Path) -> None:
    """A writer that asks for a blob whose file is gone is told to push it, and mounting it is declined; readers get an
    error; the push heals it."""

    async def work(store: LocalStore) -> None:
        blob = await push_blob(store, HERE, b"layer")
        store.paths.content(blob.digest).unlink()
        with pytest.raises(BlobUnknown):
            await store.stat_blob(HERE, blob.digest)
        assert await store.mount(THERE, HERE, blob.digest) is None
        with pytest.raises(StoreDamaged):
            await store.open_blob(HERE, blob.digest)
        await push_blob(store, HERE, b"layer")
        assert await store.stat_blob(HERE, blob.digest) == blob

    with_store(tmp_path, work)


def test_below_the_reserve_manifests_are_refused_and_deletes_pass(tmp_path: Path) -> None:
    """With no room, a manifest is StorageFull, while reading and deleting, which makes room, go on."""
    pushed: list[Manifest] = []

    async def fill(store: LocalStore) -> None:
        pushed.append(await push_image(store, HERE, LATEST))

    async def work(store: LocalStore) -> None:
        with pytest.raises(StorageFull):
            await store.put_manifest(HERE, LATEST, pushed[0], "alice")
        assert await store.manifest(HERE, pushed[0].digest) == pushed[0]
        await store.delete(HERE, LATEST, "alice")
        assert list(await store.tags(HERE, 10, None)) == []

    with_store(tmp_path, fill)
    with_store(tmp_path, work, reserve_bytes=1 << 62)


def test_a_refused_manifest_leaves_no_file(tmp_path: Path) -> None:
    """Nothing of a manifest with missing content stays on the disk."""

    async def work(store: LocalStore) -> None:
        refused = image(b"absent")
        with pytest.raises(ManifestBlobUnknown):
            await store.put_manifest(HERE, LATEST, refused, "alice")
        assert not store.paths.content(refused.digest).exists()
        assert list(store.paths.uploads.iterdir()) == []
        with pytest.raises(NameUnknown):
            await store.tags(HERE, 10, None)

    with_store(tmp_path, work)

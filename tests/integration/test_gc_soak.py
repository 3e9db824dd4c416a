"""Writers, readers and garbage collection at once, on a real store, for a few seconds (``--long``: two minutes).

Writers do what clients do: ask for each blob, push what is not there, put the manifest, tag it, and some time later
delete the tag or let it be. The blobs are few and shared, so that what one writer needs is another's garbage.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sluice.errors import BlobUnknown, ManifestBlobUnknown, ManifestUnknown, NameUnknown
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Repository, Tag
from sluice.store.gc import collect, plan, unlink_condemned
from sluice.store.local import LocalStore
from sluice.store.scrub import check
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, push_blob

SHORT_S, LONG_S = 3.0, 60.0  # each of two tests
PATIENCE_S = 90.0
WRITERS = 4
BLOBS = [b"blob %d " % number * (number + 1) for number in range(8)]
REPOSITORIES = [Repository("a"), Repository("b")]


@dataclass
class Soak:
    """What the tasks share: what was promised, and what happened."""

    store: LocalStore
    random: random.Random
    promised: dict[tuple[Repository, Tag], Manifest] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    over: bool = False


async def is_held(soak: Soak, repository: Repository, digest: Digest) -> bool:
    """A writer's HEAD: touch first, look after."""
    if not soak.store.touch(repository, digest):
        soak.seen["blocked"] += 1
        return False
    try:
        await soak.store.stat_blob(repository, digest)
    except BlobUnknown:
        return False
    return True


async def push(soak: Soak, repository: Repository, tag: Tag) -> None:
    began = time.monotonic()
    config, layer = soak.random.sample(BLOBS, 2)
    manifest = image(config, layer)
    for data in (config, layer):
        if await is_held(soak, repository, Digest.of(data)):
            soak.seen["asked"] += 1
        else:
            await push_blob(soak.store, repository, data)
            soak.seen["pushed"] += 1
    try:
        await soak.store.put_manifest(repository, tag, manifest, "writer")
    except ManifestBlobUnknown:
        # Half the grace period, for the time of asking is a little later than where it is measured here.
        assert time.monotonic() - began > soak.store.settings.grace_s / 2, "a blob went within its grace period"
        soak.seen["refused"] += 1
        return
    soak.seen["accepted"] += 1
    soak.promised[repository, tag] = manifest


async def write(soak: Soak, number: int) -> None:
    """Push and delete under tags of one's own, reading back what was promised."""
    turn = 0
    while not soak.over:
        turn += 1
        repository, tag = soak.random.choice(REPOSITORIES), Tag(f"w{number}-{turn % 3}")
        await push(soak, repository, tag)
        await pull(soak, repository, tag)
        if soak.random.random() < 0.6 and soak.promised.pop((repository, tag), None) is not None:
            await soak.store.delete(repository, tag, "writer")


async def pull(soak: Soak, repository: Repository, tag: Tag) -> None:
    """Whatever was accepted under the tag comes back whole, byte for byte."""
    expected = soak.promised.get((repository, tag))
    if expected is None:
        return
    descriptor = await soak.store.resolve(repository, tag)
    manifest = await soak.store.manifest(repository, descriptor.digest)
    assert expected.raw == manifest.raw
    for child in manifest.children:
        reader = await soak.store.open_blob(repository, child.digest)
        data = await reader.read(0, reader.size or 0)
        reader.close()
        assert child.digest == Digest.of(data)
    soak.seen["pulled"] += 1


async def collect_always(soak: Soak) -> None:
    while not soak.over:
        report = await asyncio.to_thread(collect, soak.store)
        soak.seen["collected"] += report.manifests + report.links
        soak.seen["unlinked"] += report.unlinked


async def read_strangers(soak: Soak) -> None:
    """A reader without promises: everything is there or unknown, never damaged and never an error of ours."""
    while not soak.over:
        repository, data = soak.random.choice(REPOSITORIES), soak.random.choice(BLOBS)
        try:
            reader = await soak.store.open_blob(repository, Digest.of(data))
            assert data == await reader.read(0, len(data))
            reader.close()
            await soak.store.resolve(repository, Tag("w0-0"))
        except (BlobUnknown, ManifestUnknown, NameUnknown):
            soak.seen["unknown"] += 1
        await asyncio.sleep(0)


async def soaked(data: Path, settings: StoreSettings, seconds: float, wanted: Sequence[str]) -> Counter[str]:
    """Soak for ``seconds``, and on a busy machine for longer, until all of ``wanted`` has happened."""
    store = LocalStore.open(data, settings)
    await store.start()
    seed = int(os.environ.get("GC_SOAK_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"GC_SOAK_SEED={seed}")
    soak = Soak(store, random.Random(seed))
    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(write(soak, number))
            tasks.create_task(collect_always(soak))
            tasks.create_task(read_strangers(soak))
            patience = time.monotonic() + PATIENCE_S
            await asyncio.sleep(seconds)
            while missing(soak.seen, wanted) and time.monotonic() < patience:
                await asyncio.sleep(0.1)
            soak.over = True
        for repository, tag in soak.promised:
            await pull(soak, repository, tag)
        report = await asyncio.to_thread(check, store)
        assert report.clean, report
    finally:
        await store.close()
    return soak.seen


def missing(seen: Counter[str], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if not seen[name]]


def test_without_grace(tmp_path: Path, long_form: bool) -> None:
    """With no grace at all, a manifest is refused or its blobs stay: none is ever accepted whose blobs are gone."""
    settings = StoreSettings(reserve_bytes=0, grace_s=0.0, unlink_delay_s=1.0)
    wanted = ["asked", "pushed", "accepted", "pulled", "collected", "unlinked", "unknown"]
    seen = asyncio.run(soaked(tmp_path / "data", settings, LONG_S if long_form else SHORT_S, wanted))
    assert [] == missing(seen, wanted), seen


def test_within_grace(tmp_path: Path, long_form: bool) -> None:
    """What a writer asked about within the grace period is there when its manifest comes: nothing is refused."""
    settings = StoreSettings(reserve_bytes=0, grace_s=1.5, unlink_delay_s=1.0)
    wanted = ["asked", "pushed", "accepted", "pulled", "collected"]
    seen = asyncio.run(soaked(tmp_path / "data", settings, LONG_S if long_form else SHORT_S, wanted))
    assert [] == missing(seen, wanted), seen


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_everything_goes_in_the_end(tmp_path: Path, repository: Repository) -> None:
    """After the last tag, nothing is left but the repository's name: no row, no file."""

    async def scenario() -> tuple[int, int, int]:
        store = LocalStore.open(tmp_path / "data", StoreSettings(reserve_bytes=0, grace_s=-1.0, unlink_delay_s=0.0))
        manifest = image(*BLOBS)
        for data in BLOBS:
            await push_blob(store, repository, data)
        await store.put_manifest(repository, Tag("t"), manifest, "writer")
        assert 0 == (await asyncio.to_thread(collect, store)).blobs
        await store.delete(repository, Tag("t"), "writer")
        foreseen = await asyncio.to_thread(plan, store)
        report = await asyncio.to_thread(collect, store)
        await asyncio.to_thread(unlink_condemned, store)
        totals = await store.totals()
        left = sum(path.is_file() for path in store.paths.contents.rglob("*"))
        await store.close()
        assert foreseen.blobs == report.blobs
        return report.blobs, totals.contents, left

    assert (len(BLOBS) + 1, 0, 0) == asyncio.run(scenario())

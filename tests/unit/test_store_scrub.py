"""The check of a store, on real files that are really damaged."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from sluice.errors import BlobUnknown, ManifestUnknown
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import OCI_MANIFEST
from sluice.oci.reference import Repository, Tag
from sluice.store.changes import hold_content
from sluice.store.closure import Incomplete
from sluice.store.findings import LISTED_MAX, FsckReport
from sluice.store.gc import collect
from sluice.store.local import LocalStore
from sluice.store.scrub import REPAIR_MISSING_MIN, STRAY_AGE_S, check
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, index, named, push_blob

GRACE_S = 86_400.0
CONFIG, LAYER = b"config" * 10, b"layer" * 400_000  # the layer is more than one read
REPOSITORY = Repository("team/app")


class Ahead:
    """A clock that can be ahead of the files' times."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Shop:
    """A store that holds one image, ``v1``, in an index, ``multi``, with a signature."""

    store: LocalStore
    clock: Ahead
    image: Manifest
    multi: Manifest
    signature: Manifest

    def file(self, content: bytes) -> Path:
        return self.store.paths.content(Digest.of(content))


async def stock(store: LocalStore) -> tuple[Manifest, Manifest, Manifest]:
    for data in (CONFIG, LAYER):
        await push_blob(store, REPOSITORY, data)
    pushed = image(CONFIG, LAYER)
    multi, signature = index(pushed), image(CONFIG, subject=named(OCI_MANIFEST, pushed.raw))
    await store.put_manifest(REPOSITORY, Tag("v1"), pushed, "tester")
    await store.put_manifest(REPOSITORY, Tag("multi"), multi, "tester")
    await store.put_manifest(REPOSITORY, signature.digest, signature, "tester")
    return pushed, multi, signature


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    clock = Ahead()
    store = LocalStore.open(tmp_path / "data", StoreSettings(reserve_bytes=0, grace_s=GRACE_S), clock)
    yield Shop(store, clock, *asyncio.run(stock(store)))
    asyncio.run(store.close())


def flip(path: Path) -> None:
    """Rot one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def blob_names(*contents: bytes) -> tuple[str, ...]:
    return tuple(str(Digest.of(content)) for content in contents)


def quarantined(shop: Shop) -> list[str]:
    return sorted(path.name for path in shop.store.paths.quarantine.iterdir())


def counts(report: FsckReport) -> dict[str, int]:
    return {sort: count for sort, count in report.counts.items() if count}


def test_a_sound_store_is_clean(shop: Shop) -> None:
    """Nothing is found where nothing is wrong; every byte was read; the report is JSON."""
    report = check(shop.store)
    manifests = [shop.image.raw, shop.multi.raw, shop.signature.raw]
    assert (True, False, {}) == (report.clean, report.repaired, counts(report))
    assert (5, len(CONFIG) + len(LAYER) + sum(map(len, manifests))) == (report.contents, report.bytes)
    assert 5 == json.loads(json.dumps(asdict(report)))["contents"]


DAMAGES = [
    pytest.param(flip, "its bytes have another digest", True, id="flipped bit"),
    pytest.param(truncate, f"its file has {len(LAYER) - 1} bytes, not {len(LAYER)}", True, id="truncated"),
    pytest.param(Path.unlink, "its file is missing", False, id="deleted"),
    pytest.param(replace_by_directory, "its name is not that of a regular file", True, id="directory"),
]


@pytest.mark.parametrize(("damage", "problem", "moves"), DAMAGES)
def test_damage_is_found(shop: Shop, damage: Callable[[Path], None], problem: str, moves: bool) -> None:
    """A damaged layer is named with its problem and with all tags that lack it; nothing is changed."""
    damage(shop.file(LAYER))
    report = check(shop.store)
    (layer,) = blob_names(LAYER)
    assert [(layer, problem, (REPOSITORY,), None)] == [
        (one.digest, one.problem, one.repositories, one.quarantined) for one in report.damaged
    ]
    assert {Incomplete(f"{REPOSITORY}:v1", (layer,)), Incomplete(f"{REPOSITORY}:multi", (layer,))} == set(
        report.incomplete
    )
    assert {"damaged": 1, "incomplete": 2} == counts(report)
    assert [] == quarantined(shop)
    assert asyncio.run(shop.store.stat_blob(REPOSITORY, Digest.of(CONFIG))).size == len(CONFIG)


@pytest.mark.parametrize(("damage", "problem", "moves"), DAMAGES)
def test_damage_is_repaired(shop: Shop, damage: Callable[[Path], None], problem: str, moves: bool) -> None:
    """A repair moves the file away and forgets the blob, so that a push brings it back; then all is clean."""
    damage(shop.file(LAYER))
    heard: list[str] = []
    shop.store.events.on_change(heard.append)
    report = check(shop.store, repair=True)
    (layer,) = blob_names(LAYER)
    assert [f"quarantine/{name}" for name in quarantined(shop)] == [one.quarantined for one in report.damaged if moves]
    assert (moves, [REPOSITORY]) == (len(quarantined(shop)) == 1, heard)
    with pytest.raises(BlobUnknown):
        asyncio.run(shop.store.stat_blob(REPOSITORY, Digest.of(LAYER)))
    again = check(shop.store)
    assert ({"damaged": 1, "incomplete": 2}, {"incomplete": 2}) == (counts(report), counts(again))
    assert {(layer,)} == {image.missing for image in again.incomplete}
    asyncio.run(push_blob(shop.store, REPOSITORY, LAYER))
    assert check(shop.store).clean


def test_sizes_only(shop: Shop) -> None:
    """Without hashing a flipped bit is not seen, and a wrong size is."""
    flip(shop.file(LAYER))
    assert check(shop.store, hash_content=False).clean
    truncate(shop.file(LAYER))
    assert {"damaged": 1, "incomplete": 2} == counts(check(shop.store, hash_content=False))


def test_a_damaged_manifest_is_repaired(shop: Shop) -> None:
    """The manifest's rows go, its tag and its index are incomplete, and what it held survives garbage collection for
    the grace period, so that the manifest alone brings the image back, signature included."""
    shop.clock.ahead_s = 2 * GRACE_S
    flip(shop.file(shop.image.raw))
    report = check(shop.store, repair=True)
    missing = (str(shop.image.digest),)
    assert {Incomplete(f"{REPOSITORY}:v1", missing), Incomplete(f"{REPOSITORY}:multi", missing)} == set(
        report.incomplete
    )
    with pytest.raises(ManifestUnknown):
        asyncio.run(shop.store.resolve(REPOSITORY, Tag("v1")))
    collected = collect(shop.store)
    assert (0, 0) == (collected.manifests, collected.links)
    asyncio.run(shop.store.put_manifest(REPOSITORY, Tag("v1"), shop.image, "tester"))
    assert check(shop.store).clean
    assert [shop.signature.digest] == [
        one.descriptor.digest for one in asyncio.run(shop.store.referrers(REPOSITORY, shop.image.digest))
    ]


def test_an_untagged_image_is_named_by_digest(shop: Shop) -> None:
    """What nobody tagged and no index names is told by its digest; what an index names is told by the index."""
    (config,) = blob_names(CONFIG)
    shop.file(CONFIG).unlink()
    names = {one.name for one in check(shop.store).incomplete}
    assert {f"{REPOSITORY}:v1", f"{REPOSITORY}:multi", f"{REPOSITORY}@{shop.signature.digest}"} == names
    asyncio.run(shop.store.delete(REPOSITORY, Tag("v1"), "tester"))
    assert {f"{REPOSITORY}:multi", f"{REPOSITORY}@{shop.signature.digest}"} == {
        one.name for one in check(shop.store).incomplete
    }
    assert {(config,)} == {one.missing for one in check(shop.store).incomplete}


def test_an_index_of_indexes_is_incomplete(shop: Shop) -> None:
    """What is missing is told at every height above it."""
    asyncio.run(shop.store.put_manifest(REPOSITORY, Tag("top"), index(shop.multi), "tester"))
    shop.file(LAYER).unlink()
    names = {one.name for one in check(shop.store).incomplete}
    assert {f"{REPOSITORY}:{tag}" for tag in ("v1", "multi", "top")} == names


def test_a_sparse_index_is_whole(tmp_path: Path) -> None:
    """Where sparse indexes are allowed, manifests that never came are not missing; one that was damaged is."""
    store = LocalStore.open(tmp_path / "data", StoreSettings(reserve_bytes=0, sparse_indexes=True))

    async def fill() -> None:
        await push_blob(store, REPOSITORY, CONFIG)
        await store.put_manifest(REPOSITORY, Tag("held"), image(CONFIG), "tester")
        await store.put_manifest(REPOSITORY, Tag("sparse"), index(image(CONFIG), image(CONFIG, LAYER)), "tester")

    asyncio.run(fill())
    assert check(store).clean
    flip(store.paths.content(image(CONFIG).digest))
    names = {one.name for one in check(store, repair=True).incomplete}
    asyncio.run(store.close())
    assert {f"{REPOSITORY}:held", f"{REPOSITORY}:sparse"} == names


UNKNOWN = Digest.of(b"unknown").hex


@pytest.mark.parametrize(
    "place", [f"sha256/{UNKNOWN[:2]}/{UNKNOWN}", f"sha256/00/{Digest.of(CONFIG).hex}", "sha512/00/core.1234"]
)
def test_strays(shop: Shop, place: str) -> None:
    """A file that no row knows is left for an hour, then reported, and moved away by a repair only."""
    path = shop.store.paths.contents / place
    path.write_bytes(b"unknown")
    assert check(shop.store, repair=True).clean
    shop.clock.ahead_s = STRAY_AGE_S + 60
    relative = str(path.relative_to(shop.store.paths.data))
    assert [(relative, 7, None)] == [(one.path, one.bytes, one.quarantined) for one in check(shop.store).strays]
    assert path.exists()
    assert {"strays": 1} == counts(check(shop.store, repair=True))
    assert (False, 1) == (path.exists(), len(quarantined(shop)))
    assert check(shop.store).clean


def test_condemned_files_are_no_strays(shop: Shop) -> None:
    """What waits for its unlinking is known; without its file, it is reported long after and a repair forgets it."""
    asyncio.run(push_blob(shop.store, REPOSITORY, b"garbage"))
    shop.clock.ahead_s = 2 * GRACE_S
    assert 1 == collect(shop.store).blobs
    shop.clock.ahead_s += STRAY_AGE_S + 120
    assert check(shop.store).clean
    shop.file(b"garbage").unlink()
    assert (f"condemned content {Digest.of(b'garbage')} has no file",) == check(shop.store, repair=True).rows
    assert check(shop.store).clean


def spoil(shop: Shop, *statements: str) -> None:
    """Change rows behind the index's back."""
    connection = sqlite3.connect(shop.store.paths.index)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


ORPHAN = "'sha256:" + "ab" * 32 + "'"


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        pytest.param(f"INSERT INTO links VALUES (1, {ORPHAN}, 0, NULL)", "has no content row", id="link"),
        pytest.param(
            f"INSERT INTO manifests VALUES (1, {ORPHAN}, 'x', 1, NULL, NULL, '{{}}', 0, 0, NULL)",
            "has no content row",
            id="manifest",
        ),
        pytest.param(f"INSERT INTO edges VALUES (1, {ORPHAN}, {ORPHAN}, 'blob', 1)", "no manifest row", id="edges"),
        pytest.param(f"INSERT INTO edges VALUES (9, {ORPHAN}, {ORPHAN}, 'blob', 1)", "repository 9@", id="repository"),
        pytest.param(
            "INSERT INTO condemned SELECT digest, 0, size FROM contents LIMIT 1", "held and condemned", id="both"
        ),
        pytest.param("INSERT INTO contents VALUES ('../../etc', 1, 0)", "no digest for its name", id="misnamed"),
        pytest.param("UPDATE totals SET value = value + 7 WHERE name = 'bytes'", "the total of bytes", id="totals"),
    ],
)
def test_contradictory_rows(shop: Shop, statement: str, says: str) -> None:
    """Rows that contradict each other are reported, and a repair removes just them."""
    spoil(shop, statement)
    before = check(shop.store)
    assert ({"rows": 1}, True) == (counts(before), says in before.rows[0])
    assert {"rows": 1} == counts(check(shop.store, repair=True))
    assert check(shop.store).clean
    assert asyncio.run(shop.store.resolve(REPOSITORY, Tag("multi"))).digest == shop.multi.digest


def test_a_tag_without_manifest_is_incomplete(shop: Shop) -> None:
    """A tag that points at nothing is named, and stays: pushing the manifest heals it."""
    spoil(shop, f"INSERT INTO tags VALUES (1, 'lost', {ORPHAN}, 0)")
    report = check(shop.store, repair=True)
    assert (Incomplete(f"{REPOSITORY}:lost", (ORPHAN.strip("'"),)),) == report.incomplete


def test_a_broken_index_file_ends_the_check(tmp_path: Path) -> None:
    """Where SQLite's file is damaged, that is the report, and a repair does nothing on the word of such an index."""
    store = LocalStore.open(tmp_path / "data", StoreSettings(reserve_bytes=0))
    asyncio.run(stock(store))
    sql = "SELECT rootpage FROM sqlite_schema WHERE rootpage > 0"
    roots = asyncio.run(store.index.fetch(lambda c: [root for (root,) in c.execute(sql)]))
    asyncio.run(store.close())
    with store.paths.index.open("r+b") as file:  # every table and index, but not what says which there are
        for root in roots:
            os.pwrite(file.fileno(), b"\xff" * 4096, 4096 * (root - 1))
    broken = LocalStore.open(tmp_path / "data", StoreSettings(reserve_bytes=0))
    report = check(broken, repair=True)
    asyncio.run(broken.close())
    assert (False, False, 0) == (report.clean, report.repaired, report.contents)
    assert len(report.index) > 0
    assert [] == list(store.paths.quarantine.iterdir())


def test_a_missing_disk_is_not_repaired(shop: Shop) -> None:
    """Where most files are missing, a repair changes nothing and says why: rows are kept for when the disk is back."""

    async def more() -> None:
        for number in range(REPAIR_MISSING_MIN):
            await push_blob(shop.store, REPOSITORY, b"%d" % number)

    asyncio.run(more())
    content = shop.store.paths.contents / "sha256"
    hidden = content.rename(content.with_name("unmounted"))
    for shard in hidden.iterdir():
        (content / shard.name).mkdir(parents=True)
    report = check(shop.store, repair=True)
    assert (False, REPAIR_MISSING_MIN + 5) == (report.repaired, report.counts["damaged"])
    assert "is mounted" in report.rows[0]
    for shard in content.iterdir():
        shard.rmdir()
    content.rmdir()
    hidden.rename(content)
    assert check(shop.store).clean


def test_a_push_during_the_check_is_believed(shop: Shop) -> None:
    """Damage that a push has healed before the check could look again under the lock is no damage."""
    layer = Digest.of(LAYER)
    flip(shop.file(LAYER))
    with ThreadPoolExecutor(1) as threads:
        with shop.store.content_lock(layer):
            checking = threads.submit(check, shop.store, True)
            time.sleep(0.3)  # for the check to have seen the damage; too short a time would let a defect pass
            healed = shop.file(LAYER).with_name("healed")
            healed.write_bytes(LAYER)
            healed.replace(shop.file(LAYER))
        assert checking.result().clean
    assert LAYER == shop.file(LAYER).read_bytes()


def test_a_push_during_the_walk_is_no_stray(shop: Shop) -> None:
    """A file whose row comes before the check could look again under the lock is content, however old."""
    content = Digest.of(b"unknown")
    shop.clock.ahead_s = STRAY_AGE_S + 60
    shop.file(b"unknown").write_bytes(b"unknown")
    with ThreadPoolExecutor(1) as threads:
        with shop.store.content_lock(content):
            checking = threads.submit(check, shop.store, True)
            time.sleep(0.5)  # for the check to have seen the file; too short a time would let a defect pass
            shop.store.index.write_blocking(lambda c: hold_content(c, content, 7, 0.0))
        assert checking.result().clean


def test_the_rate_is_kept(shop: Shop) -> None:
    """Reading is not faster than it may be."""
    began = time.monotonic()
    report = check(shop.store, rate_bytes_s=4_000_000)
    assert time.monotonic() - began >= report.bytes / 4_000_000


def test_lists_are_bounded(shop: Shop) -> None:
    """A report lists so many findings, and counts all."""
    rows = [(f"sha256:{number:064x}",) for number in range(LISTED_MAX + 5)]
    shop.store.index.write_blocking(
        lambda c: c.executemany("INSERT INTO contents VALUES (?, 1, 0)", rows) and None  # no file is there
    )
    report = check(shop.store)
    assert (LISTED_MAX + 5, LISTED_MAX) == (report.counts["damaged"], len(report.damaged))


def test_progress_can_end_the_check(shop: Shop) -> None:
    """What the listener raises comes out, and the store is as it was."""

    def stop(progress: Mapping[str, object]) -> None:
        raise InterruptedError(str(progress["step"]))

    with pytest.raises(InterruptedError, match="contents"):
        check(shop.store, on_progress=stop)
    assert check(shop.store).clean

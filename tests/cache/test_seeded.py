"""The suites against a cache with a defect in it: each would be noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cache import scripted, test_cancellation, test_disk_full, test_fill, test_pullthrough
from cache.scripted import Body
from sluice.cache import fill, policy, readers, tags
from sluice.cache.fill import Fill
from sluice.cache.fills import Fills
from sluice.cache.sources import Opener
from sluice.cache.spool import Spool
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest
from sluice.store.uploads import LocalUploads

Suite = Callable[[Path], Coroutine[Any, Any, None]]
Seed = Callable[[pytest.MonkeyPatch], None]


def no_digest_check(patch: pytest.MonkeyPatch) -> None:
    """Whatever came is published under the digest that was asked for."""

    def verify(self: Any, identifier: str, session: Any, digest: Digest) -> None:
        session.file.digest(digest.algorithm)

    patch.setattr(LocalUploads, "_verify", verify)


def nothing_withheld(patch: pytest.MonkeyPatch) -> None:
    """Readers get the last bytes before the digest is verified."""
    patch.setattr(fill, "WITHHELD_BYTES", 0)


def one_fill_each(patch: pytest.MonkeyPatch) -> None:
    """Nobody joins a fill that runs."""
    patch.setattr(Fills, "find", lambda *_: None)


def resume_at_the_start(patch: pytest.MonkeyPatch) -> None:
    """A broken body is asked for again from the first byte, and appended."""
    copy_from = Fill._copy_from

    async def from_the_start(self: Fill, opener: Opener, *, primary: bool) -> None:
        class Shifted:
            def __init__(self, reader: BlobReader, by: int) -> None:
                self.size, self.close, self._reader, self._by = reader.size, reader.close, reader, by

            async def read(self, offset: int, length: int) -> bytes:
                return await self._reader.read(offset - self._by, length)

        async def shifted(offset: int) -> BlobReader:
            return Shifted(await opener(0), offset)

        await copy_from(self, shifted, primary=primary)

    patch.setattr(Fill, "_copy_from", from_the_start)


def spools_stay(patch: pytest.MonkeyPatch) -> None:
    """A fill that fails leaves its spool."""

    async def drop(self: Spool) -> None:
        await self.settle()

    patch.setattr(Spool, "drop", drop)


def readers_own_the_fill(patch: pytest.MonkeyPatch) -> None:
    """The last reader that leaves takes the fill with it."""
    detach = Fill.detach

    def leave(self: Fill) -> None:
        detach(self)
        if self._readers == 0:
            for task in self._fills._tasks:
                task.cancel()

    patch.setattr(Fill, "detach", leave)


def nothing_is_stale(patch: pytest.MonkeyPatch) -> None:
    """Trouble with the upstream is everybody's trouble."""

    def after_ask(known: bool, outcome: policy.Outcome, _: policy.CachePolicy) -> policy.Verdict:
        return policy.Verdict.FRESH if outcome is policy.Outcome.FOUND else policy.Verdict.RAISE

    patch.setattr(tags, "after_ask", after_ask)


def unverified_passage(patch: pytest.MonkeyPatch) -> None:
    """What is passed through is not verified."""
    patch.setattr(readers.ThroughReader, "_finish", lambda self: setattr(self, "_ended", True))


async def wrong_small(data: Path) -> None:
    await test_fill.test_a_wrong_blob_completes_no_reader(data, test_fill.SMALL, Body(flip_at=0))


async def wrong_large(data: Path) -> None:
    await test_fill.test_a_wrong_blob_completes_no_reader(data, test_fill.DATA, Body(flip_at=-1))


async def stalled(data: Path) -> None:
    await test_cancellation.test_a_fill_that_waits_is_closed_too(data, "stalled")


async def resumed(data: Path) -> None:
    await test_fill.test_a_break_is_resumed_where_it_was(data, True)


async def troubled(data: Path) -> None:
    await test_pullthrough.test_known_tags_outlive_every_trouble(data, test_pullthrough.TROUBLES[0])


async def quietly(suite: Suite, data: Path) -> None:
    """A suite that ends half-way leaves readers whose errors nobody takes."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await suite(data)


@pytest.mark.parametrize(
    ("seed", "suite"),
    [
        (no_digest_check, wrong_small),
        (no_digest_check, wrong_large),
        (nothing_withheld, test_fill.test_the_last_chunk_waits_for_the_digest),
        (nothing_withheld, wrong_large),
        (one_fill_each, test_fill.test_many_readers_share_one_call),
        (resume_at_the_start, resumed),
        (spools_stay, stalled),
        (readers_own_the_fill, test_fill.test_a_fill_outlives_its_readers),
        (nothing_is_stale, troubled),
    ],
    ids=lambda thing: thing.__name__,
)
def test_a_defect_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: Seed, suite: Suite) -> None:
    """The suite passes, and with this defect it does not."""
    monkeypatch.setattr(scripted, "PATIENCE_S", 3.0)
    asyncio.run(suite(tmp_path / "well"))
    seed(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        asyncio.run(quietly(suite, tmp_path / "ill"))


async def test_an_unverified_passage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite of the full disk notices when what is passed through is not verified."""
    for _ in test_disk_full.mounted(tmp_path):
        unverified_passage(monkeypatch)
        with pytest.raises((Exception, pytest.fail.Exception)):
            await test_disk_full.test_what_passes_through_is_verified(tmp_path / "disk", Body(flip_at=7 << 20))

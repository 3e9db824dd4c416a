"""The suites of a cache's space against a defect: each would be noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase

from cache import test_space, test_space_model
from sluice.cache import evict, space
from sluice.cache.fill import Fill
from sluice.store import eviction
from sluice.store.leases import Leases

Suite = Callable[[Path], Coroutine[Any, Any, None]]
Seed = Callable[[pytest.MonkeyPatch], None]


def no_budget(patch: pytest.MonkeyPatch) -> None:
    """Everybody is let in."""

    async def lacking(*_: Any) -> int:
        return 0

    patch.setattr(space.Space, "_lacking", lacking)


def grants_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Only what is held counts, and not what fills have written."""
    patch.setattr(space.Space, "granted_bytes", 0)


def shared_layers_go(patch: pytest.MonkeyPatch) -> None:
    """All layers go with an image, whoever else needs them."""
    patch.setattr(eviction, "_NAMING", "SELECT parent FROM edges WHERE 0 AND repository = ? AND child = ?")


def pins_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A pinned image is as good as any."""
    doom = eviction._doom

    def without_pins(connection: Any, number: int, image: Any) -> Any:
        connection.execute("UPDATE cached_tags SET pinned = 0")
        return doom(connection, number, image)

    patch.setattr(eviction, "_doom", without_pins)
    why_kept = evict.why_kept
    patch.setattr(evict, "why_kept", lambda image, in_use: why_kept(replace(image, pinned=False), in_use))


def readers_are_not_seen(patch: pytest.MonkeyPatch) -> None:
    """Whoever reads or fills has no say."""
    patch.setattr(Leases, "uses", lambda _: frozenset())


def fills_are_not_seen(patch: pytest.MonkeyPatch) -> None:
    """A fill takes no lease."""
    begin = Fill.__init__

    def begin_without(self: Fill, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        for lease in self._leases:
            self._fills.store.leases.drop(lease)

    patch.setattr(Fill, "__init__", begin_without)


def files_go_under_readers(patch: pytest.MonkeyPatch) -> None:
    """A file is unlinked although somebody has looked it up."""
    patch.setattr(Leases, "digests", lambda _: frozenset())


def files_stay(patch: pytest.MonkeyPatch) -> None:
    """Rows go and files do not."""
    for module in (eviction, space):
        patch.setattr(module, "unlink_unread", lambda *_: None)


def newest_first(patch: pytest.MonkeyPatch) -> None:
    """The most recently used image leaves first."""
    plan = evict.plan_eviction

    def backwards(images: Any, sizes: Any, wish: Any) -> Any:
        return plan([replace(image, used_at=-image.used_at) for image in images], sizes, wish)

    patch.setattr(space, "plan_eviction", backwards)


async def model(_: Path) -> None:
    await asyncio.to_thread(test_space_model.check, 30, 20, [Phase.generate])


@pytest.mark.parametrize(
    ("seed", "suite"),
    [
        (no_budget, test_space.test_the_least_recently_used_image_leaves),
        (no_budget, model),
        (grants_are_not_counted, model),
        (shared_layers_go, test_space.test_a_shared_layer_stays),
        (pins_are_forgotten, test_space.test_a_pinned_tag_never_leaves),
        (readers_are_not_seen, test_space.test_what_is_read_or_filled_never_leaves),
        (fills_are_not_seen, test_space.test_what_is_read_or_filled_never_leaves),
        (files_go_under_readers, test_space.test_what_was_looked_at_while_it_left_is_no_reason_for_others_to_leave),
        (files_stay, test_space.test_the_least_recently_used_image_leaves),
        (newest_first, test_space.test_the_least_recently_used_image_leaves),
    ],
    ids=lambda thing: thing.__name__,
)
def test_a_defect_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: Seed, suite: Suite) -> None:
    """The suite passes (which its own test says), and with this defect it does not."""
    seed(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        asyncio.run(suite(tmp_path / "ill"))

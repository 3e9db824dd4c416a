"""Which images leave: truth tables, and what holds for every cache there can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.cache.evict import Keep, Wish, find_busy, idle_s, plan_eviction, why_kept
from sluice.store.eviction import Outage
from sluice.store.images import HeldImage
from sluice.store.leases import Use

NOW = 1000.0
SIZES = {"a": 10, "b": 20, "c": 40, "shared": 100, "m1": 1, "m2": 1, "m3": 1}


def held(name: str, used_at: float, *digests: str, repository: str = "app") -> HeldImage:
    everything = frozenset({name, *digests})
    return HeldImage(repository, name, (), everything, everything, used_at)


OLD, MIDDLE, NEW = (held("m1", 1, "a", "shared"), held("m2", 2, "b", "shared"), held("m3", 3, "c"))


def names(planned: Sequence[HeldImage]) -> list[str]:
    return [image.digest for image in planned]


@pytest.mark.parametrize(
    ("images", "need", "spare", "expected"),
    [
        ((OLD, MIDDLE, NEW), 0, 0, []),
        ((OLD, MIDDLE, NEW), 1, 0, ["m1"]),
        ((NEW, MIDDLE, OLD), 11, 0, ["m1"]),
        ((OLD, MIDDLE, NEW), 12, 0, ["m1", "m2"]),
        ((OLD, MIDDLE, NEW), 132, 0, ["m1", "m2"]),
        ((OLD, MIDDLE, NEW), 133, 0, ["m1", "m2", "m3"]),
        ((OLD, MIDDLE, NEW), 173, 0, ["m1", "m2", "m3"]),
        ((OLD, MIDDLE, NEW), 174, 0, []),
        ((OLD, MIDDLE, NEW), 1, 11, ["m1", "m2"]),
        ((OLD, MIDDLE, NEW), 1, 10_000, ["m1", "m2", "m3"]),
        ((OLD, MIDDLE, NEW), 0, 10_000, ["m1", "m2", "m3"]),
        ((replace(OLD, pinned=True), MIDDLE, NEW), 1, 0, ["m2"]),
        ((replace(OLD, pinned=True), MIDDLE, NEW), 63, 0, []),
        ((replace(OLD, protected=True), MIDDLE, NEW), 22, 0, ["m2", "m3"]),
        ((replace(OLD, pushed=True), MIDDLE, NEW), 22, 0, ["m2", "m3"]),
        ((OLD, held("m1", 9, "a", "shared", repository="other"), NEW), 50, 0, ["m1", "m3", "m1"]),
    ],
)
def test_the_least_recently_used_leave_until_there_is_room(
    images: Sequence[HeldImage], need: int, spare: int, expected: list[str]
) -> None:
    """Images leave in the order of their last use, no more than are wanted, a shared content counts when its last image
    leaves, and where all that can leave is not enough nothing leaves."""
    assert expected == names(plan_eviction(images, SIZES, Wish(NOW, need, spare)))


@pytest.mark.parametrize(
    ("image", "busy", "expected"),
    [
        (OLD, set(), None),
        (OLD, {("app", "m2"), ("other", "m1")}, None),
        (OLD, {("app", "m1")}, Keep.IN_USE),
        (replace(OLD, pinned=True), {("app", "m1")}, Keep.PINNED),
        (replace(OLD, protected=True), set(), Keep.PROTECTED),
        (replace(OLD, pushed=True), set(), Keep.PUSHED),
    ],
)
def test_why_an_image_stays(image: HeldImage, busy: set[Use], expected: Keep | None) -> None:
    """Pinned, protected, pushed or in use: each keeps an image."""
    assert expected is why_kept(image, busy)


@pytest.mark.parametrize(
    ("in_use", "expected"),
    [
        ([], []),
        ([("app", "a")], ["m1"]),
        ([("app", "m1"), ("app", "c")], ["m1", "m3"]),
        ([("app", "shared")], ["m2"]),
        ([("other", "shared")], []),
        ([("app", "coming")], ["m4"]),
        ([("app", "nowhere")], []),
    ],
)
def test_what_is_read_makes_an_image_busy(in_use: list[Use], expected: list[str]) -> None:
    """A layer that is read or filled belongs to the image that was used last of those that have it, there, be it held
    or still to come."""
    coming = replace(held("m4", 0), digests=frozenset({"m4", "coming"}))
    assert {("app", name) for name in expected} == find_busy([OLD, MIDDLE, NEW, coming], frozenset(in_use))


@pytest.mark.parametrize(
    ("outages", "expected"),
    [
        ([], 100),
        ([(0, 50)], 100),
        ([(NOW - 50, NOW - 20)], 70),
        ([(NOW - 200, NOW - 90)], 90),
        ([(NOW - 30, NOW)], 70),
        ([(NOW - 30, NOW + 5)], 70),
        ([(NOW - 50, NOW - 20), (NOW - 60, NOW - 40)], 60),
        ([(NOW - 50, NOW - 20), (NOW - 45, NOW - 40), (NOW - 10, NOW)], 60),
        ([(0, NOW * 2)], 0),
        ([(NOW + 1, NOW + 2)], 100),
    ],
)
def test_the_clock_stands_still_in_an_outage(outages: list[tuple[float, float]], expected: float) -> None:
    """Time in which the upstream could not be asked does not count, and none of it counts twice."""
    assert expected == idle_s(NOW - 100, NOW, [Outage(*one) for one in outages])


@pytest.mark.parametrize(
    ("ttl_s", "outages", "expected"),
    [
        (500, {}, ["m1", "m2", "m3"]),
        (997.5, {}, ["m1", "m2"]),
        (999, {}, []),
        (0, {}, []),
        (math.inf, {}, []),
        (998.5, {"app": [Outage(10, 20)]}, []),
        (998.5, {"other": [Outage(10, 20)]}, ["m1"]),
    ],
)
def test_what_nobody_uses_leaves(ttl_s: float, outages: dict[str, list[Outage]], expected: list[str]) -> None:
    """An image leaves when its time without use is up, whether there is room or not; 0 is for ever."""
    assert expected == names(plan_eviction((OLD, MIDDLE, NEW), SIZES, Wish(NOW, ttl_s=ttl_s, outages=outages)))


def test_expired_images_leave_though_the_room_is_not_enough() -> None:
    """What is expired leaves in any case; for room that cannot be made nothing else does."""
    assert ["m1"] == names(plan_eviction((OLD, MIDDLE, NEW), SIZES, Wish(NOW, need_bytes=1000, ttl_s=998.5)))


CONTENTS = [f"blob{number}" for number in range(8)]


@st.composite
def images(draw: st.DrawFn) -> list[HeldImage]:
    """Images in two repositories that share contents."""
    flags = st.sampled_from(["", "", "", "pinned", "protected", "pushed"])
    found = []
    for number in range(draw(st.integers(0, 8))):
        name, flag = f"m{number}", draw(flags)
        contents = frozenset({name, *draw(st.sets(st.sampled_from(CONTENTS)))})
        coming = frozenset(draw(st.sets(st.sampled_from(CONTENTS), max_size=2)))
        repository, used_at = draw(st.sampled_from(["app", "other"])), float(draw(st.integers(0, 5)))
        image = HeldImage(repository, name, (), contents, contents | coming, used_at)
        found.append(replace(image, **{flag: True}) if flag else image)  # type: ignore[arg-type]
    return found


@settings(max_examples=400, deadline=None)
@given(
    images(),
    st.dictionaries(st.sampled_from(CONTENTS), st.integers(0, 50)),
    st.integers(0, 300),
    st.integers(0, 50),
    st.sets(st.tuples(st.sampled_from(["app", "other"]), st.sampled_from(CONTENTS)), max_size=3),
    st.sampled_from([0.0, 996.5, 998.5, math.inf]),
)
def test_every_plan_keeps_the_rules(
    cache: list[HeldImage], sizes: dict[str, int], need: int, spare: int, in_use: set[Use], ttl_s: float
) -> None:
    """Nothing that must stay leaves; the order is that of last use; no image leaves beyond what is wanted; what is
    needed comes free, or nothing leaves for it."""
    wish = Wish(NOW, need, spare, ttl_s, in_use)
    plan = plan_eviction(cache, sizes, wish)
    busy = find_busy(cache, in_use)
    assert [None] * len(plan) == [why_kept(image, busy) for image in plan]
    stay = [image for image in cache if image not in plan]
    for repository, digest in in_use:
        sharing = [image for image in cache if image.repository == repository and digest in image.digests]
        assert not sharing or any(image in stay for image in sharing)
    expired = [image for image in plan if ttl_s and NOW - image.used_at > ttl_s]
    assert sorted(plan, key=lambda one: (one.used_at, one.repository, one.digest)) == list(plan)
    assert expired == list(plan[: len(expired)])
    able = [image for image in cache if why_kept(image, busy) is None]
    stays = [image for image in able if image not in plan]
    if stays and plan:
        assert max(one.used_at for one in plan) <= min(one.used_at for one in stays)
    for more in plan[len(expired) :]:
        before = plan[: plan.index(more)]
        assert freed(cache, before, sizes) < need + spare
    assert freed(cache, plan, sizes) >= need or (list(plan) == expired and freed(cache, able, sizes) < need)


def freed(cache: Sequence[HeldImage], gone: Sequence[HeldImage], sizes: dict[str, int]) -> int:
    """The model: what no image that stays holds."""
    held_then = {digest for image in cache for digest in image.held}
    held_now = {digest for image in cache if image not in gone for digest in image.held}
    return sum(sizes.get(digest, 0) for digest in held_then - held_now)

"""Garbage collection over graphs: what it keeps, what it removes, and that the dry run says the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluice.store.gc import EXAMPLES_MAX, GcReport, collect, plan
from sluice.store.local import LocalStore
from sluice.store.reach import BATCH_ROWS, batches, doomed
from sluice.store.settings import StoreSettings
from sluice.testing.graph import (
    GRACE_S,
    Clock,
    Contained,
    Node,
    Row,
    World,
    digest,
    fill,
    held,
)

DELAY_S = 60.0
SETTINGS = StoreSettings(reserve_bytes=0, grace_s=GRACE_S, unlink_delay_s=DELAY_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LocalStore]:
    opened = LocalStore.open(tmp_path / "data", SETTINGS, clock)
    yield opened
    asyncio.run(opened.close())


def must_be_kept(world: World) -> tuple[set[Row], set[Row], set[str]]:
    """The claim itself: everything that can be reached from a tag or from what is fresh."""
    manifests, links = set(), set()
    for repository, contained in world.items():
        nodes = contained.manifests
        kept: set[str] = set()
        frontier = {name for name, node in nodes.items() if node.tagged or node.fresh}
        while frontier:
            kept |= frontier
            reached = {child for name in frontier for child in nodes[name].children if child in nodes}
            reached |= {name for name, node in nodes.items() if node.subject in frontier}
            frontier = reached - kept
        named = {child for name in kept for child in (*nodes[name].blobs, *nodes[name].children)}
        manifests |= {(repository, digest(name)) for name in kept}
        links |= {(repository, digest(blob)) for blob, fresh in contained.links.items() if fresh or blob in named}
    return manifests, links, {name for _, name in manifests | links}


def as_dry(report: GcReport) -> GcReport:
    return replace(report, dry_run=True, duration_s=0.0)


IMAGE = Node(blobs=("config", "layer"))
LINKS = {"config": False, "layer": False}


@pytest.mark.parametrize(
    ("world", "manifests", "links"),
    [
        pytest.param({"r": Contained({"m": IMAGE}, LINKS)}, set(), set(), id="untagged goes with its blobs"),
        pytest.param(
            {"r": Contained({"m": replace(IMAGE, tagged=True)}, LINKS)}, {"m"}, {"config", "layer"}, id="tagged stays"
        ),
        pytest.param(
            {"r": Contained({"m": replace(IMAGE, fresh=True)}, LINKS)},
            {"m"},
            {"config", "layer"},
            id="a fresh manifest keeps its stale blobs",
        ),
        pytest.param({"r": Contained({}, {"a": True, "b": False})}, set(), {"a"}, id="a fresh blob stays"),
        pytest.param(
            {"r": Contained({"i": Node(children=("m",), tagged=True), "m": IMAGE}, LINKS)},
            {"i", "m"},
            {"config", "layer"},
            id="an index keeps its images",
        ),
        pytest.param(
            {"r": Contained({"i": Node(children=("m",)), "m": replace(IMAGE, tagged=True)}, LINKS)},
            {"m"},
            {"config", "layer"},
            id="an untagged index goes and its tagged image stays",
        ),
        pytest.param(
            {
                "r": Contained(
                    {
                        "m": Node(tagged=True),
                        "sbom": Node(blobs=("layer",), subject="m"),
                        "signature": Node(blobs=("config",), subject="sbom"),
                    },
                    LINKS,
                )
            },
            {"m", "sbom", "signature"},
            {"config", "layer"},
            id="referrers of what is kept stay, recursively",
        ),
        pytest.param(
            {"r": Contained({"m": Node(), "sbom": Node(blobs=("layer",), subject="m")}, LINKS)},
            set(),
            set(),
            id="referrers go with their subject",
        ),
        pytest.param(
            {"r": Contained({"sbom": Node(subject="never pushed")})}, set(), set(), id="a referrer of nothing goes"
        ),
        pytest.param(
            {"r": Contained({"m": Node(), "sbom": Node(subject="m", tagged=True)})},
            {"sbom"},
            set(),
            id="a tagged referrer does not keep its subject",
        ),
        pytest.param(
            {"r": Contained({"i": Node(children=("m",), subject="m"), "m": Node()})},
            set(),
            set(),
            id="a ring of index and subject goes",
        ),
        pytest.param(
            {"r": Contained({"i": Node(children=("m",), subject="m"), "m": Node(fresh=True)})},
            {"i", "m"},
            set(),
            id="a ring with a fresh member stays",
        ),
        pytest.param(
            {"r": Contained({"i": Node(children=("b",), tagged=True)}, {"b": False})},
            {"i"},
            {"b"},
            id="a blob that is named as a manifest stays",
        ),
        pytest.param(
            {"r": Contained({"i": Node(blobs=("m",), tagged=True), "m": Node()}, {"m": False})},
            {"i"},
            {"m"},
            id="a manifest that is named as a blob stays as a blob",
        ),
    ],
)
def test_what_stays(store: LocalStore, world: World, manifests: set[str], links: set[str]) -> None:
    """Each rule of what is kept, in the smallest graph that shows it; the model of the random test agrees."""
    fill(store, world)
    collect(store)
    expected = {("r", digest(name)) for name in manifests}, {("r", digest(name)) for name in links}
    assert (expected, expected) == (held(store)[:2], must_be_kept(world)[:2])


def test_repositories_do_not_hold_for_each_other(store: LocalStore) -> None:
    """A tag in one repository keeps the content and its own link, not another repository's."""
    kept = Contained({"m": replace(IMAGE, tagged=True)}, LINKS)
    fill(store, {"a": kept, "b": Contained({"m": IMAGE}, LINKS), "c": Contained({}, LINKS)})
    report = collect(store)
    assert must_be_kept({"a": kept}) == held(store)
    assert (1, 4, 0) == (report.manifests, report.links, report.blobs)


NAMES = [f"m{number}" for number in range(7)]
BLOBS = [f"b{number}" for number in range(5)]


@st.composite
def repositories(draw: st.DrawFn) -> Contained:
    """Manifests that name lower ones only, as digests make it: yet a subject may be an own child, which is a ring."""
    nodes = {}
    for number, name in enumerate(NAMES):
        lower = st.sampled_from(NAMES[:number]) if number else st.nothing()
        subjects = st.none() | lower
        node = Node(
            blobs=tuple(draw(st.sets(st.sampled_from(BLOBS), max_size=3))),
            children=tuple(draw(st.sets(lower, max_size=3))) if number else (),
            subject=draw(subjects),
            tagged=draw(st.integers(0, 5)) == 0,
            fresh=draw(st.integers(0, 7)) == 0,
        )
        if draw(st.integers(0, 4)):  # some are named and not held: sparse indexes, subjects that never came
            nodes[name] = node
    return Contained(nodes, draw(st.dictionaries(st.sampled_from([*BLOBS, *NAMES[:2]]), st.booleans())))


@given(first=repositories(), second=repositories(), orphans=st.sets(st.sampled_from(["o1", "b0", "m0"])))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_graphs(store: LocalStore, first: Contained, second: Contained, orphans: set[str]) -> None:
    """Of any repositories exactly what must be kept is left, as the dry run said, and a second run finds nothing."""
    world = {"a": first, "b": second}
    fill(store, world, tuple(orphans))
    before, foreseen = held(store), plan(store)
    assert before == held(store)
    report = collect(store)
    assert must_be_kept(world) == held(store)
    assert as_dry(foreseen) == as_dry(report)
    again = collect(store)
    assert (0, 0, 0) == (again.manifests, again.links, again.blobs)


@given(
    holders=st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES), max_size=3)),
    rows=st.fixed_dictionaries({name: st.integers(1, 4) for name in NAMES}),
    size=st.integers(1, 8),
)
@settings(deadline=None)
def test_batches_can_go_one_by_one(holders: dict[str, set[str]], rows: dict[str, int], size: int) -> None:
    """Of any relation, cycles included: each batch is doomed by itself once the batches before it are gone, and is no
    larger than it may be, unless it is one manifest or one ring."""
    gone = doomed(holders)
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sluice.store.reach.BATCH_ROWS", size)
        listed = list(batches(holders, {name: rows[name] for name in gone}))
    for batch in listed:
        remaining = {one: holders[one] - set(seen) for one in batch}
        assert set(batch) == doomed(remaining)
        in_ring = all(remaining[one] for one in batch)
        assert len(batch) == 1 or in_ring or sum(rows[one] for one in batch) <= size
        seen += batch
    assert sorted(gone) == sorted(seen)


def test_long_chains(store: LocalStore) -> None:
    """More rows than one change takes, each holding the next, go in one run, and the report names a bounded few."""
    count = BATCH_ROWS * 2 + 7
    chain = {f"m{n}": Node(blobs=(f"b{n}",), children=(f"m{n + 1}",)) for n in range(count)}
    fill(store, {"r": Contained(chain, {f"b{n}": False for n in range(count)})})
    report = collect(store)
    assert (count, count, 2 * count) == (report.manifests, report.links, report.blobs)
    assert EXAMPLES_MAX == len(report.examples)
    assert (set(), set(), set()) == held(store)


def test_totals_follow(store: LocalStore) -> None:
    """The report's bytes are those by which the store's totals shrink."""
    fill(store, {"r": Contained({"keep": Node(blobs=("big",), tagged=True)}, {"big": False, "garbage": False})})
    before = asyncio.run(store.totals())
    report = collect(store)
    after = asyncio.run(store.totals())
    assert (1, len("garbage")) == (report.blobs, report.bytes)
    assert (before.contents - 1, before.bytes - report.bytes) == (after.contents, after.bytes)

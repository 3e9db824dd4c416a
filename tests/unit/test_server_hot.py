"""Hot manifests: what is kept, what is dropped, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.server.hot import ENTRY_OVERHEAD_BYTES, USE_AGAIN_S, HotManifest, HotManifests

DIGEST = Digest.of(b"manifest")


def entry(repository: str, size: int = 10) -> HotManifest:
    return HotManifest(Repository(repository), DIGEST, b'"etag"', {}, {}, size)


def test_an_answer_is_kept_when_nothing_changed_meanwhile() -> None:
    """What was read between ``begin`` and ``keep`` with no write in between is served from memory."""
    hot = HotManifests(1 << 20)
    generation = hot.begin(Repository("a"))
    kept = entry("a")
    hot.keep(b"/v2/a/manifests/1", kept, generation)
    assert hot.get(b"/v2/a/manifests/1") is kept


def test_a_write_between_reading_and_keeping_prevents_keeping() -> None:
    """An answer read before a write and kept after it would be stale for ever."""
    hot = HotManifests(1 << 20)
    generation = hot.begin(Repository("a"))
    hot.changed(Repository("a"))
    hot.keep(b"/v2/a/manifests/1", entry("a"), generation)
    assert hot.get(b"/v2/a/manifests/1") is None


def test_a_change_drops_the_repository_and_nothing_else() -> None:
    """Only the changed repository's answers go."""
    hot = HotManifests(1 << 20)
    for name in ("a", "b"):
        hot.keep(f"/v2/{name}/manifests/1".encode(), entry(name), hot.begin(Repository(name)))
    hot.changed(Repository("a"))
    assert (None, True) == (hot.get(b"/v2/a/manifests/1"), hot.get(b"/v2/b/manifests/1") is not None)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 5000), st.booleans()), max_size=60)
)
def test_the_bound_holds_and_the_count_is_true(steps: list[tuple[str, int, int, bool]]) -> None:
    """Whatever is kept and changed, memory stays within the limit and is counted right."""
    limit = 4 * (ENTRY_OVERHEAD_BYTES + 1000)
    hot = HotManifests(limit)
    sizes: dict[bytes, tuple[str, int]] = {}
    for name, tag, size, change in steps:
        repository, path = Repository(name), f"/v2/{name}/manifests/{tag}".encode()
        if change:
            hot.changed(repository)
        else:
            sizes.setdefault(path, (name, size))
            if hot.get(path) is None:
                sizes[path] = (name, size)
            hot.keep(path, entry(name, size), hot.begin(repository))
        held = sum(size + ENTRY_OVERHEAD_BYTES for path, (_, size) in sizes.items() if hot.get(path) is not None)
        assert held == hot.bytes
        assert hot.bytes <= limit


def test_hits_count_as_use_now_and_then() -> None:
    """Every hit is counted; that an answer is in use is told once in ``USE_AGAIN_S``, for each answer."""
    hot, used = HotManifests(1 << 20), list[str]()
    hot.on_use = lambda repository, _: used.append(repository)
    a, b = entry("a"), entry("b")
    for one, now in [(a, 100.0), (a, 101.0), (b, 101.0), (a, 100.0 + USE_AGAIN_S), (b, 102.0)]:
        hot.hit(one, now)
    assert (["a", "b", "a"], 5) == (used, hot.hits)

"""What is held is served whatever becomes of the upstream: digests as ever, tags with a warning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.street import HEAD_S, REPOSITORY, TAG, House, Street, check_whole, street, wait_until
from sluice.testing.upstreams import Cut, Failing, Fault, Liar, RateLimited, Redirect, Stall, Unauthorized

WARNING = '110 - "Response is Stale"'
TROUBLES: dict[str, tuple[list[Fault], str]] = {
    "5xx": ([Failing(503)], "failed"),
    "hangs up": ([Cut(before_head=True)], "unreachable"),
    "never answers": ([Stall()], "timeout"),
    "429": ([RateLimited()], "rate_limited"),
    "429 with Retry-After": ([RateLimited(3)], "rate_limited"),
    "wrong password": ([Unauthorized(users={"sluice": "another"})], "unauthorized"),
    "a page with 200": ([Liar("html")], "invalid"),
    "redirects in a circle": ([Redirect(when=lambda request: True)], "invalid"),
}


def known(house: House) -> House:
    """With its image held."""
    assert (200, 200) == (house.tag().status, house.blob().status)
    wait_until(lambda: house.blob().origin == "hit", "the layer is kept")  # its file is there a little earlier
    return house


@pytest.mark.parametrize("trouble", TROUBLES)
def test_known_content_is_served(town: Street, house: House, trouble: str) -> None:
    """The tag at its last value with a warning and the reason; digests without asking anybody."""
    faults, reason = TROUBLES[trouble]
    known(house)
    counted = town.metric("sluice_cache_stale_total")
    house.spoil(*faults)
    house.upstream.forget()
    by_digest, blob = house.get(f"manifests/{house.image}"), house.blob()
    assert [(200, "hit", None)] * 2 == [
        (one.status, one.origin, one.headers.get("warning")) for one in (by_digest, blob)
    ]
    assert [] == house.upstream.requests
    stale = house.tag()
    assert (200, f'stale; reason="{reason}"', WARNING) == (stale.status, stale.origin, stale.headers.get("warning"))
    assert stale.body == by_digest.body
    assert counted < town.metric("sluice_cache_stale_total")
    house.upstream.content.move_tag(REPOSITORY, "v2", house.image)
    assert house.tag("v2").status in {502, 503, 504}
    house.spoil()
    wait_until(lambda: house.tag().headers.get("warning") is None, "the tag is asked about again")


def test_only_the_first_waits_for_a_silent_upstream(house: House) -> None:
    """Once a known tag or list was asked for in vain, nobody waits for the upstream again, though it is asked each
    time."""
    known(house)
    assert {"upstream", "hit"} >= {house.get("tags/list").origin}
    house.spoil(Stall())
    for path in (f"manifests/{TAG}", "tags/list"):
        assert 'stale; reason="timeout"' == house.get(path).origin
        for _ in range(3):
            began = time.monotonic()
            assert 'stale; reason="timeout"' == house.get(path).origin
            assert time.monotonic() - began < HEAD_S / 2


def test_a_dead_upstream_that_comes_back(town: Street, house: House) -> None:
    """While it is down it is shown as broken and not asked for every pull; when it is back, pulls ask it again."""
    known(house)
    house.upstream.stop()
    assert {'stale; reason="unreachable"'} == {house.tag().origin for _ in range(5)}
    mine = f'sluice_upstream_broken{{registry="{house.name}"}}'
    wait_until(lambda: f"{mine} 1" in town.sluice.operations("/metrics")[1], "it is shown as broken")
    moved = house.upstream.content.push_image(REPOSITORY, TAG, [b"moved"])
    house.upstream.start()
    wait_until(lambda: house.tag().headers.get("docker-content-digest") == str(moved), "the new image is found")
    assert f"{mine} 0" in town.sluice.operations("/metrics")[1]


def test_a_tag_that_vanishes_is_kept(house: House) -> None:
    """By default: with a warning and the reason; what nobody has seen is 404."""
    known(house)
    house.upstream.content.delete_tag(REPOSITORY, TAG)
    gone = house.tag()
    assert (200, 'stale; reason="gone"', WARNING) == (gone.status, gone.origin, gone.headers.get("warning"))
    assert (404, "MANIFEST_UNKNOWN") == house.tag("v2").verdict
    house.upstream.content.move_tag(REPOSITORY, TAG, house.image)
    assert "upstream" == house.tag().origin


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """Where ``cache.keep_gone`` is off."""
    flags = ("--cache-tag-fresh-s", "0", "--cache-revalidate", "first", "--cache-negative-s", "0")
    with street(tmp_path_factory.mktemp("strict"), 2, *flags, "--no-cache-keep-gone") as made:
        yield made


def test_a_tag_that_vanishes_is_dropped(strict: Street) -> None:
    """Where that is configured: 404; its content stays by digest; a dead upstream drops nothing."""
    house = known(strict.house())
    house.upstream.content.delete_tag(REPOSITORY, TAG)
    assert (404, "MANIFEST_UNKNOWN") == house.tag().verdict
    assert "hit" == house.get(f"manifests/{house.image}").origin
    other = known(strict.house())
    other.upstream.stop()
    assert 'stale; reason="unreachable"' == other.tag().origin


def test_a_tag_is_looked_at_in_the_background(tmp_path: Path) -> None:
    """By default a tag that is not fresh is served at once, however dead its upstream; then the warning is there."""
    with street(tmp_path, 1, "--cache-tag-fresh-s", "0") as here:
        house = known(here.house())
        house.spoil(Stall())
        assert 'hit; reason="being looked at again"' == house.tag().origin
        wait_until(lambda: house.tag().origin == 'stale; reason="timeout"', "the failure is known")
        check_whole(here.sluice)

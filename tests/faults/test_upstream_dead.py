"""Upstreams at which nobody answers, whom we do not trust, or who are ourselves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from faults.street import House, Street, pulls, wait_until
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer

SOON_S = 5.0
"""Far less than any limit on an upstream adds up to: so fast is an answer that waits for nobody."""

DEAD: dict[str, tuple[int, str]] = {
    "refused.test": (502, "Connection refused"),
    "hole.test": (504, "did not answer within 1 s"),
    "nameless.test": (502, "failed to lookup address information"),
    "foreign.test": (502, "invalid peer certificate"),
}


@pytest.mark.parametrize("name", DEAD)
def test_nobody_answers(town: Street, name: str) -> None:
    """502 or 504 with the reason, never 404; soon it is taken for dead, and who asks then does not wait."""
    status, reason = DEAD[name]
    house = town.house(name)
    seen = [house.tag(), house.blob(), house.tag(), house.blob()]
    assert [(status, "UNAVAILABLE")] * 4 == [one.verdict for one in seen]
    assert reason in seen[0].message
    assert reason in house.logged or reason in town.sluice.log.read_text("utf-8", "replace")
    began = time.monotonic()
    assert "is not asked again yet" in house.tag().message
    for _ in range(20):
        house.tag()
    assert time.monotonic() - began < SOON_S
    assert f'sluice_upstream_broken{{registry="{name}"}} 1' in town.sluice.operations("/metrics")[1]


def test_the_others_do_not_notice(town: Street) -> None:
    """One upstream that is dead costs the pulls from another nothing."""
    town.house("hole.test").tag()
    alive = town.house()
    assert (200, alive.layer) == (alive.tag().status, alive.blob().body)


def test_an_authority_that_we_were_told_of(town: Street) -> None:
    """TLS with a private CA works where ``ca`` names it."""
    house = town.house("tls.test")
    assert (200, house.layer) == (house.tag().status, house.blob().body)


def test_ourselves_as_upstream(tmp_path: Path) -> None:
    """An upstream that is our own listener is refused on start, with the field, the value and the remedy."""
    server = SluiceServer(tmp_path / "data", tls=False)
    server.flags = ("--mode", "proxy", "--upstream", f"http://127.0.0.1:{server.port}")
    with pytest.raises(AssertionError, match=r"own listen: name the registry to ask"):
        server.start()
    assert server.process is not None
    assert 2 == server.process.wait()


def test_a_circle_of_two(tmp_path: Path) -> None:
    """Two caches that are each other's upstream say so with 508, after one round, and still serve what they hold."""
    first, second = SluiceServer(tmp_path / "first", tls=False), SluiceServer(tmp_path / "second", tls=False)
    first.flags = ("--mode", "proxy", "--upstream", f"http://127.0.0.1:{second.port}")
    second.flags = ("--mode", "proxy", "--upstream", f"http://127.0.0.1:{first.port}")
    with first, second:
        seen = pulls(first, "team/app/manifests/v1")
        assert (508, "UNAVAILABLE") == seen.verdict
        assert "ourselves" in seen.message


def test_start_and_return(tmp_path: Path) -> None:
    """It starts and is ready without its upstream; when that comes, pulls work, and nothing needs a restart."""
    upstream = UpstreamServer(UpstreamContent())
    with SluiceServer(tmp_path / "data", "--mode", "proxy", "--upstream", upstream.address, tls=False) as sluice:
        assert 502 == pulls(sluice, "team/app/manifests/v1").status
        house = House(sluice, "", upstream)
        with upstream:
            wait_until(lambda: house.tag().status == 200, "the upstream is asked again")
            assert house.layer == house.blob().body

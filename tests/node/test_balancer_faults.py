"""Replicas that die, freeze or refuse in the middle of a blob: what a runtime sees through the balancer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import Balanced, balanced, needs_haproxy, noise, wait_until

pytestmark = needs_haproxy
BLOB = noise(64 << 20)
FIRST_BYTES = 1 << 20
DETECTION_S = 2.0  # the limit
SLACK_S = 1.0  # for two cores that many suites share


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Balanced]:
    with balanced(tmp_path) as scene:
        yield scene


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_replica_dies_in_the_middle_of_a_blob(scene: Balanced, number: signal.Signals) -> None:
    """A stream whose replica is killed or frozen ends short, by FIN, in time; the rest comes from another replica."""
    for replica in scene.replicas.values():
        digest = replica.push("up/a", BLOB)
    path = f"/v2/up/a/blobs/{digest}?ns=registry.example%3A5000"
    with scene.get(path) as body:
        body.read(FIRST_BYTES)
        victim = scene.busy()
        pid = scene.replicas[victim].server.pid
        os.kill(pid, number)
        began = time.monotonic()
        try:
            first = body.read()
            took_s = time.monotonic() - began
            assert (200, False, True) == (body.status, body.reset, body.ended)
            assert FIRST_BYTES <= len(first) < len(BLOB)
            assert took_s < DETECTION_S + SLACK_S
            scene.wait_for(**{victim.replace("-", "_"): False})
            before = {name: one.sent for name, one in scene.seen().items()}
            with scene.get(path, f"Range: bytes={len(first)}-") as rest:
                assert rest.read() == BLOB[len(first) :]
                assert rest.status == 206
            grown = {name for name, one in scene.seen().items() if one.sent > before[name]}
            assert victim not in grown
            assert len(grown) == 1
            down = scene.seen()[victim]
            assert abs(time.time() - down.since) < 2 * SLACK_S + time.monotonic() - began
        finally:
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
    if number == signal.SIGSTOP:
        scene.wait_for(**{victim.replace("-", "_"): True})


def test_all_replicas_gone(scene: Balanced) -> None:
    """With no replica left the answer is a 503 that says so, at once and in the registry API's form."""
    for replica in scene.replicas.values():
        replica.server.kill()
    scene.wait_for(master_1=False, master_2=False, master_3=False)
    with scene.get("/v2/") as body:
        assert b"UNAVAILABLE" in body.read()
        assert (503, "application/json") == (body.status, body.headers["content-type"])
    assert all("refused" in one.reason for one in scene.seen().values())


def test_requests_while_a_replica_goes_and_comes(scene: Balanced) -> None:
    """No request is answered with an error over a replica's death or return: what was not answered is asked elsewhere.

    The one that is about to be sent there in the very instant in which the replica is taken out may find its connection
    closed, as HAProxy drops it; a runtime has its next host then, and here it is asked again.
    """
    blobs = [noise(1000, seed) for seed in range(20)]
    digests = [replica.push("up/a", blob) for replica in scene.replicas.values() for blob in blobs][: len(blobs)]
    victim = scene.replicas["master-2"].server
    victim.kill()
    found, closed = [], 0
    while scene.seen()["master-2"].up:
        for digest in digests:
            for _ in range(2):
                with scene.get(f"/v2/up/a/blobs/{digest}") as body:
                    content = body.read()
                if body.status:
                    break
                closed += 1
            found.append((body.status, content in blobs))
    assert ({(200, True)}, True) == (set(found), closed <= 1)
    victim.start()
    scene.wait_for(master_2=True)
    wait_until(lambda: _asked(scene, digests) > 0, "the replica that came back is asked again")


def test_a_replica_that_has_been_away_is_news(scene: Balanced) -> None:
    """Whoever compares answers sees that it is down, and that it was, when it is up again; traffic is no news."""
    digest = scene.replicas["master-1"].push("up/a", BLOB)
    before = scene.balancer.state()
    with scene.get(f"/v2/up/a/blobs/{digest}") as body:
        body.read()
    seen = [scene.balancer.is_as(before)]
    scene.replicas["master-2"].server.kill()
    scene.wait_for(master_2=False)
    seen.append(scene.balancer.is_as(before))
    down = scene.balancer.state()
    seen.append(scene.balancer.is_as(down))
    scene.replicas["master-2"].server.start()
    scene.wait_for(master_2=True)
    assert [True, False, True, False, False] == [*seen, scene.balancer.is_as(before), scene.balancer.is_as(down)]


def _asked(scene: Balanced, digests: list[str]) -> int:
    before = scene.seen()["master-2"].sent
    for digest in digests:
        with scene.get(f"/v2/up/a/blobs/{digest}") as body:
            body.read()
            assert body.status == 200
    return scene.seen()["master-2"].sent - before

"""How soon a replica is taken out that requests find dead, and how gently one is taken in that has been away."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from node.balanced import NAMES, Balanced, balanced, needs_haproxy, noise, wait_until
from sluice.node.balancer import BACKEND, WEIGHT, interval_ms
from sluice.node.haproxy import QUESTION

pytestmark = needs_haproxy
NODES = 4000  # checks are 20 s apart
BLOBS = [noise(1000, seed) for seed in range(60)]
"""Enough that every replica is asked for some of them."""


def push_all(scene: Balanced) -> list[str]:
    """Every blob, to every replica; their digests."""
    first, *_ = [[replica.push("up/a", blob) for blob in BLOBS] for replica in scene.replicas.values()]
    return first


def ask_for_all(scene: Balanced, digests: list[str]) -> list[int]:
    """The answers' status codes; 0 for a connection that was closed before."""
    found = []
    for digest in digests:
        with scene.get(f"/v2/up/a/blobs/{digest}") as body:
            body.read()
            found.append(body.status)
    return found


def row_of(scene: Balanced, name: str) -> dict[str, str]:
    """What HAProxy says about a replica, by its own columns."""
    _, _, stat = scene.balancer.ask(QUESTION).partition("\n\n")
    rows = csv.DictReader(stat.removeprefix("# ").splitlines())
    (row,) = (row for row in rows if row["pxname"] == BACKEND and row["svname"].startswith(f"{name}_"))
    return row


def test_requests_find_a_dead_replica_before_checks_do(tmp_path: Path) -> None:
    """On a cluster where checks are 20 s apart, one that dies right after a check is out before the next one would have
    come, because requests have met it. Checks alone take another 8 s after that one. It still is a check that judges,
    and of the requests at most the one is lost that is about to be sent there in that instant."""
    with Balanced(tmp_path) as scene:
        digests = push_all(scene)
        ports = {"port": scene.port, "metrics_port": scene.metrics_port}
        scene.apply(scene.layout(balancer={**ports, "nodes": NODES}))
        wait_until(lambda: checked(scene) != [], "a first check")
        victim, checked_at = checked(scene)[0], time.monotonic()
        scene.replicas[victim].server.kill()
        found: list[int] = []
        while scene.seen()[victim].up:
            found += ask_for_all(scene, digests)
            assert time.monotonic() - checked_at < interval_ms(NODES, len(NAMES)) / 1000
        assert "refused" in scene.seen()[victim].reason
        assert found.count(200) >= len(found) - 1


def checked(scene: Balanced) -> list[str]:
    return [name for name, one in scene.seen().items() if "passed" in one.reason]


def test_a_replica_that_comes_back_is_taken_in_slowly(tmp_path: Path) -> None:
    """It gets a few of the requests first, then more and more, and in the end those that it had before."""
    with balanced(tmp_path) as scene:
        digests = push_all(scene)
        before = share(scene, "master-2", digests)
        server = scene.replicas["master-2"].server
        server.kill()
        scene.wait_for(master_2=False)
        server.start()
        scene.wait_for(master_2=True)
        shares: list[int] = []
        weights: list[int] = []
        while weights[-1:] != [WEIGHT]:
            weights.append(int(row_of(scene, "master-2")["weight"]))
            shares.append(share(scene, "master-2", digests))
        assert weights == sorted(weights)
        assert weights[0] < WEIGHT / 2
        assert shares[0] < before
        assert before == shares[-1]


def share(scene: Balanced, name: str, digests: list[str]) -> int:
    """How many of the requests for all blobs this replica gets."""
    asked = int(row_of(scene, name)["stot"])
    assert {200} == set(ask_for_all(scene, digests))
    return int(row_of(scene, name)["stot"]) - asked

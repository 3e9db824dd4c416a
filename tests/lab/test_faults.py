"""What is taken away from a cluster in the middle of its work, and what must happen then: nearly always nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import pytest

from lab.clusters import WAIT_S, cluster, wait_until
from lab.isolated import needs_lab
from lab.workload import REWRITE, hand_out, node_status, pulling
from sluice.cluster.layout import NodeLayout
from sluice.errors import PullFailed, Unavailable
from sluice.lab import faults
from sluice.lab.credentials import LAYOUT_NAME, SECRETS_NAME
from sluice.lab.cri import pull
from sluice.lab.evidence import Sending, sendings
from sluice.lab.laboratory import full_name
from sluice.lab.mounts import data_of
from sluice.lab.parts import fetch
from sluice.lab.scene import LabScene, Published
from sluice.lab.story import Strike, Survived, find_sender, survive
from sluice.lab.topology import OPERATIONS_PORT

pytestmark = needs_lab
LAYER = 128 << 20
SMALL = 1 << 20
SEEN_S = 2.0
FAILS_S = 5.0
DIAL_S = 30.0
SLACK_S = 2.0
"""What a machine that is busy with other tests may add."""
REWRITES = 1000
LEAST_PULLS = 20
AROUND_BYTES = 32 << 10
"""What a balancer's count may have beside a layer's bytes: answers' heads, manifests, and a buffer that it held when
the stream was ended."""
TRIES = 3
"""How often a quick machine may be through with a layer first."""
REWRITE_S = 200.0
SEEDS = count(1)


@pytest.fixture(scope="module")
def cut_off() -> Iterator[Future[float]]:
    """How long a pull takes to fail where packets to every replica vanish, in seconds. It waits beside the others."""
    with cluster(control_planes=1, workers=1) as scene, ThreadPoolExecutor(1) as pool:
        faults.cut(scene.lab, "cp-1")

        def fail() -> float:
            began = time.monotonic()
            with pytest.raises(PullFailed):
                pull(scene.place("worker-1").socket, full_name(scene.hello))
            took = time.monotonic() - began
            wait_until(lambda: {"cp-1"} == down(scene, "worker-1"))
            return took

        yield pool.submit(fail)


@pytest.fixture(scope="module")
def scene(cut_off: Future[float]) -> Iterator[LabScene]:
    """Up after the other one, which then waits while this one is used."""
    with cluster(control_planes=3, workers=2) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(scene: LabScene) -> Iterator[None]:
    """Every test leaves the laboratory as it found it, and finds it with every replica in use."""
    yield
    faults.heal(scene.lab, faults.ALL)
    for node in scene.nodes:
        wait_until(lambda node=node: all(one.up for one in scene.seen(node).values()))  # type: ignore[misc]


def fresh(scene: LabScene, size: int) -> Published:
    """An image whose big layer nobody has."""
    seed = next(SEEDS)
    return scene.publish(f"team/app-{seed}", size, seed)


@pytest.mark.parametrize(
    ("fault", "target", "said"),
    [(faults.kill, "{}/replica", "stopped"), (faults.freeze, "{}/replica", "frozen"), (faults.cut, "{}", "link cut")],
    ids=["killed", "frozen", "cut"],
)
def test_a_replica_lost_in_the_middle_of_a_layer(scene: LabScene, fault: faults.Fault, target: str, said: str) -> None:
    """The pull succeeds: the victim sent some of the layer and another the rest, which is what the balancer has counted
    from each. It sees within two seconds that the victim is gone, and both status commands say so."""
    noticed = 0.0

    def strike(victim: str) -> None:
        nonlocal noticed
        # The layer's end would come before a slow machine's strike.
        faults.freeze(scene.lab, "upstream")
        fault(scene.lab, target.format(victim))
        noticed = wait_until(lambda: not scene.seen("worker-1")[victim].up)
        faults.thaw(scene.lab, "upstream")

    survived, counted = survived_by(scene, "worker-1", strike)
    assert set(survived.sent) == {name for name, count in counted.items() if count > AROUND_BYTES}
    off = {name: counted[name] - sent for name, sent in survived.sent.items()}
    assert {} == {name: count for name, count in off.items() if abs(count) > AROUND_BYTES}
    assert noticed < SEEN_S + SLACK_S
    part = next(one for one in scene.lab.status() if one.part == f"{survived.victim}/replica")
    assert said in {part.state, part.note}
    wait_until(lambda: {survived.victim} == down(scene, "worker-1"))


def survived_by(scene: LabScene, node: str, strike: Strike) -> tuple[Survived, dict[str, int]]:
    """What the logs say, and beside it what the node's balancer has counted of the layer from each replica."""
    for _ in range(TRIES):
        image = fresh(scene, LAYER)
        before = counts(scene, node, image)
        survived = survive(scene, node, image, strike)
        if survived is not None:
            wait_until(lambda: not any(scene.streams(node).values()))  # a stream is counted when it ends
            return survived, {name: count - before[name] for name, count in counts(scene, node, image).items()}
        faults.heal(scene.lab, faults.ALL)
    pytest.fail(f"{TRIES} times a layer of {LAYER} bytes was through before its replica was struck")


def counts(scene: LabScene, node: str, image: Published) -> dict[str, int]:
    """Bytes from each replica to a node that pulls alone, without those of other blobs, whose answers are logged."""
    logs = {name: log.read_text() for name, log in scene.logs().items()}
    blobs = {name: bytes_of(log, "sha256:") - bytes_of(log, image.layer) for name, log in logs.items()}
    return {name: one.sent - blobs[name] for name, one in scene.seen(node).items()}


def bytes_of(log: str, digest: str) -> int:
    return sum(one.sent for one in sendings(log, digest))


def down(scene: LabScene, node: str) -> set[str]:
    """The replicas of which ``sluice node status`` says so."""
    return {one["name"] for one in node_status(scene, node)["replicas"] if not one["up"]}


def test_full_disks_stop_writing_only(scene: LabScene) -> None:
    """With no room on any replica, what was cached is served, and what was not goes through and is kept by none; with
    room again it is kept."""
    cached, other = fresh(scene, SMALL), fresh(scene, SMALL)
    scene.pull("worker-1", cached.reference)
    wait_until(lambda: holders(scene, cached) != set())
    for replica in scene.replicas:
        faults.fill_disk(scene.lab, replica)
    unkept = total(scene, "sluice_cache_unkept_total")
    for image in (cached, other):
        assert scene.pull("worker-2", image.reference).startswith("sha256:")
    wait_until(lambda: total(scene, "sluice_cache_unkept_total") > unkept)
    wait_until(lambda: total(scene, "sluice_cache_fills_active") == 0)
    assert set() == holders(scene, other)
    assert all(one.up for one in scene.seen("worker-2").values())
    faults.heal(scene.lab, faults.ALL)
    assert scene.pull("worker-1", other.reference).startswith("sha256:")
    wait_until(lambda: holders(scene, other) != set())


def holders(scene: LabScene, image: Published) -> set[str]:
    """The replicas on whose disks an image's big layer is."""
    name = image.layer.removeprefix("sha256:")
    places = {one.name: scene.lab.ground.inside(data_of(one)) for one in scene.lab.topology.control_planes}
    return {replica for replica, place in places.items() if list((place / "content").rglob(name))}


def total(scene: LabScene, metric: str) -> float:
    """A metric without labels, of all replicas together."""
    found = 0.0
    for machine in scene.lab.topology.control_planes:
        _, raw = fetch(scene.lab.ground, machine, ("127.0.0.1", OPERATIONS_PORT), "/metrics")
        found += sum(float(line.split()[1]) for line in raw.decode().splitlines() if line.startswith(f"{metric} "))
    return found


def test_a_full_disk_refuses_a_push_and_serves_the_rest() -> None:
    """In Local mode: who pushes is told that there is no room, nothing of it is kept, every node pulls what is there,
    and with room again the same push goes through."""
    with cluster(mode="local", control_planes=1, workers=1) as scene:
        kept = scene.publish("team/kept", SMALL, 1)
        faults.fill_disk(scene.lab, "cp-1")
        with pytest.raises(Unavailable, match="507 Insufficient Storage"):
            scene.publish("team/refused", 4 * SMALL, 2)
        for node in scene.nodes:
            assert scene.pull(node, kept.reference).startswith("sha256:")
            with pytest.raises(PullFailed):
                scene.pull(node, "team/refused:1")
        faults.heal(scene.lab, "cp-1")
        late = scene.publish("team/refused", 4 * SMALL, 2)
        assert scene.pull("worker-1", late.reference).startswith("sha256:")


def test_all_replicas_killed(scene: LabScene) -> None:
    """A pull fails within five seconds, ``node status`` names all replicas and since when; with them it goes on."""
    image, socket = fresh(scene, SMALL), scene.place("worker-1").socket
    before = time.time()
    for replica in scene.replicas:
        scene.kill(replica)
    began = time.monotonic()
    with pytest.raises(PullFailed):
        pull(socket, full_name(image.reference))
    assert time.monotonic() - began < FAILS_S
    wait_until(lambda: set(scene.replicas) == down(scene, "worker-1"))
    wait_until(lambda: node_status(scene, "worker-1")["healthy"] is False)
    found = node_status(scene, "worker-1")
    assert all(before - SLACK_S < one["since"] < time.time() for one in found["replicas"])
    faults.heal(scene.lab, faults.ALL)
    assert pull(socket, full_name(image.reference)).startswith("sha256:")


def test_balancer_killed_in_the_middle_of_a_layer(scene: LabScene) -> None:
    """The runtime goes on with a replica itself, the pull succeeds, and the agent brings the balancer back."""
    with held_in_the_middle(scene, "worker-1") as (image, going):
        faults.kill(scene.lab, "worker-1/balancer")
    assert going.result().startswith("sha256:")
    wait_until(lambda: [True] == [0 < one.sent < image.size for one in answers(scene, image) if one.status == 206])
    wait_until(lambda: scene.balancer("worker-1").state().running)


def test_a_frozen_balancer_is_started_anew(scene: LabScene) -> None:
    """Its runtime connects to it and waits, until the node's agent has ended it; then pulls go on by themselves."""
    before, image = scene.lab.running()["worker-1/balancer"], fresh(scene, SMALL)
    faults.freeze(scene.lab, "worker-1/balancer")
    wait_until(lambda: scene.balancer("worker-1").state().running, 2 * WAIT_S)
    assert scene.pull("worker-1", image.reference).startswith("sha256:")
    after = scene.lab.running()["worker-1/balancer"]
    assert not {one.pid for one in before} & {one.pid for one in after}
    wait_until(lambda: "the balancer" in {one["where"] for one in node_status(scene, "worker-1")["findings"]})


def test_balancer_upgraded_in_the_middle_of_a_layer(scene: LabScene) -> None:
    """Another configuration is taken over while a layer comes, which comes to its end in one piece."""
    before = scene.balancer("worker-1").state().config
    try:
        with held_in_the_middle(scene, "worker-1") as (image, going):
            hand_out(scene, rarer_checks, "worker-1")
            wait_until(lambda: scene.balancer("worker-1").state().config not in {before, None})
        assert going.result().startswith("sha256:")
        wait_until(lambda: [(200, image.size)] == [(one.status, one.sent) for one in answers(scene, image)])
    finally:
        hand_out(scene, usual_checks, "worker-1")


def rarer_checks(layout: NodeLayout) -> NodeLayout:
    return layout.model_copy(update={"balancer": layout.balancer.model_copy(update={"nodes": 500})})


def usual_checks(layout: NodeLayout) -> NodeLayout:
    return layout.model_copy(update={"balancer": layout.balancer.model_copy(update={"nodes": 5})})


@contextlib.contextmanager
def held_in_the_middle(scene: LabScene, node: str) -> Iterator[tuple[Published, Future[str]]]:
    """A pull whose big layer stands still, part of it there, until the block ends: its upstream is frozen."""
    for _ in range(TRIES):
        image = fresh(scene, LAYER)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(scene.pull, node, image.reference)
            found = find_sender(scene, node, image, going)
            faults.freeze(scene.lab, "upstream")
            try:
                if found is not None and answers(scene, image) == []:
                    yield image, going
                    return
            finally:
                faults.thaw(scene.lab, "upstream")
    pytest.fail(f"{TRIES} times a layer of {LAYER} bytes was through before its upstream was frozen")


def answers(scene: LabScene, image: Published) -> list[Sending]:
    """Every answer about an image's big layer in the replicas' logs."""
    return [one for log in scene.logs().values() for one in sendings(log.read_text(), image.layer)]


def test_pulls_while_hosts_toml_is_rewritten(scene: LabScene) -> None:
    """Beside applies that turn the order of the sources around, a thousand at a time until twenty pulls have ended on
    that node, not one pull fails. A thousand take 6 s alone on two cores, with 60 pulls beside them: each pull meets
    some 17 rewrites, and how many of those fall between its two readings of the file is left to chance. CA files keep
    their content here, so nothing is said about them (``test_lab_rotation``)."""
    node, image = "worker-2", fresh(scene, SMALL)
    machine = scene.lab.topology.node(node)
    faults.kill(scene.lab, f"{node}/agent")
    documents = [f"{machine.home}/{name}" for name in (LAYOUT_NAME, SECRETS_NAME)]
    program = [sys.executable, "-c", REWRITE, *documents, str(REWRITES)]
    deadline = time.monotonic() + REWRITE_S
    with pulling(scene, image.reference, node) as pulls:
        before, ended = pulls.done, 0
        while ended < LEAST_PULLS:
            assert time.monotonic() < deadline, f"{ended} pulls within {REWRITE_S:g} s"
            said = scene.lab.ground.run(program, machine, REWRITE_S)
            assert ([], str(REWRITES)) == (pulls.failed, said.strip())
            ended = pulls.done - before
    assert pulls.failed == []


def test_all_replicas_cut_off(cut_off: Future[float]) -> None:
    """A pull fails within thirty seconds for each listed host, for this containerd may not know ``dial_timeout``."""
    hosts = 2  # the balancer and the replica
    assert cut_off.result() < DIAL_S * hosts + SLACK_S

"""The fault table over a whole cluster: what is taken away in the middle of a layer, and that the pull ends well.

Three control planes with a caching replica each and a worker. How each fault is noticed by the balancer alone, and how
files are replaced under a runtime, is tested where they are made (``tests/node``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from lab.clusters import cluster, wait_until
from lab.isolated import needs_lab
from sluice.errors import PullFailed
from sluice.lab.cri import Runtime
from sluice.lab.evidence import received, sendings
from sluice.lab.faults import cut, fill_disk, freeze, heal, kill
from sluice.lab.laboratory import Laboratory, full_name
from sluice.lab.layouts import node_paths
from sluice.lab.scene import LabScene, Published
from sluice.lab.story import Survived, survive

pytestmark = needs_lab
NODE = "worker-1"
LAYER_BYTES = 192 << 20
SMALL_BYTES = 1 << 20
TRIES = 3
DETECTION_S = 2.0  # the table's limit
GRAIN_S = 1.5  # the balancer tells whole seconds, and two cores are shared by many suites
ALL_KILLED_S = 5.0  # the table's limit
DIAL_S = 30.0  # containerd before 2.0.7 knows no other
STATUS_S = 10.0
numbers = count(1)


@pytest.fixture(scope="module")
def scene() -> Iterator[LabScene]:
    with cluster(control_planes=3, workers=1) as made:
        yield made


@pytest.fixture(autouse=True)
def given_back(scene: LabScene) -> Iterator[None]:
    """Whatever a test has taken away is there for the next."""
    yield
    heal(scene.lab, "all")
    wait_until(lambda: all(one.up for one in scene.seen(NODE).values()))


def status_of(scene: LabScene) -> dict[str, dict[str, object]]:
    """The replicas as ``sluice node status`` on the worker tells them, by name."""
    node = scene.lab.topology.node(NODE)
    said = scene.lab.run(node, ["sluice", "node", "status", "--state", node_paths(node).state, "--output", "json"])
    return {one["name"]: one for one in json.loads(said)["replicas"]}


def struck(scene: LabScene, strike: Callable[[Laboratory, str], str], target: str) -> Survived:
    """A pull that lost its replica in the middle of the layer; ``target``: what is struck, with the replica's name."""
    for _ in range(TRIES):
        number = next(numbers)
        image = scene.publish(f"faults/layer-{number}", LAYER_BYTES, number)
        survived = survive(scene, NODE, image, lambda victim: strike(scene.lab, target.format(victim)))
        if survived is not None:
            return survived
        heal(scene.lab, "all")
    raise AssertionError("the layer was always through before its replica could be struck")


@pytest.mark.parametrize(
    ("strike", "target"), [(kill, "{}/replica"), (freeze, "{}/replica"), (cut, "{}")], ids=["kill", "freeze", "cut"]
)
def test_replica_lost_in_the_middle_of_a_layer(
    scene: LabScene, strike: Callable[[Laboratory, str], str], target: str
) -> None:
    """The pull succeeds with bytes from the victim and from another; balancer and ``status`` have noticed."""
    survived = struck(scene, strike, target)
    from_victim = survived.sent[survived.victim]
    rest = sum(sent for name, sent in survived.sent.items() if name != survived.victim)
    assert 0 < from_victim
    assert 0 < rest
    down = scene.seen(NODE)[survived.victim]
    assert (False, True) == (down.up, down.since - survived.struck_at < DETECTION_S + GRAIN_S)
    wait_until(lambda: not status_of(scene)[survived.victim]["up"], STATUS_S)
    others = [one["up"] for name, one in status_of(scene).items() if name != survived.victim]
    assert [True, True] == others


def test_balancer_killed_in_the_middle_of_a_layer(scene: LabScene) -> None:
    """The runtime goes on at the replicas themselves, and the agent brings the balancer back."""
    number = next(numbers)
    image = scene.publish(f"faults/layer-{number}", LAYER_BYTES, number)
    place = scene.place(NODE)
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(scene.pull, NODE, image.reference)
        wait_until(lambda: pulling.done() or received(place, image.layer) > SMALL_BYTES)
        kill(scene.lab, f"{NODE}/balancer")
        had = received(place, image.layer)
        assert pulling.result().startswith("sha256:")
    assert had < image.size, "the layer was through before the balancer could be killed"
    resumed = [one for log in scene.logs().values() for one in sendings(log.read_text(), image.layer)]
    assert any(one.status == 206 and one.sent < image.size for one in resumed)
    wait_until(lambda: scene.balancer(NODE).state().running)


def test_full_disks(scene: LabScene) -> None:
    """With every replica's disk full, what is held and what is not are both served, and every replica stays in."""
    held, unheld = (scene.publish(f"faults/disk-{next(numbers)}", SMALL_BYTES, next(numbers)) for _ in range(2))
    scene.pull("cp-1", held.reference)
    for replica in scene.replicas:
        fill_disk(scene.lab, replica)
    for image in (held, unheld):
        assert scene.pull(NODE, image.reference).startswith("sha256:")
    assert [True] * 3 == [one.up for one in scene.seen(NODE).values()]
    assert {"disk full"} == {one.note for one in scene.lab.status() if one.part.endswith("/replica")}


def test_all_replicas_killed(scene: LabScene) -> None:
    """A pull fails within the limit instead of hanging; ``status`` names each replica and since when; all come back."""
    image = scene.publish(f"faults/gone-{next(numbers)}", SMALL_BYTES, next(numbers))
    for replica in scene.replicas:
        kill(scene.lab, f"{replica}/replica")
    killed_at = time.time()
    assert ALL_KILLED_S > failing_pull_s(scene, image)
    wait_until(lambda: not any(one["up"] for one in status_of(scene).values()), STATUS_S)
    for one in status_of(scene).values():
        assert abs(float(str(one["since"])) - killed_at) < STATUS_S
    heal(scene.lab, "all")
    assert scene.pull(NODE, image.reference).startswith("sha256:")


@pytest.mark.slow
def test_all_replicas_cut_off(scene: LabScene) -> None:
    """Where packets vanish, a pull fails within containerd's own 30 s for each host that its file lists."""
    image = scene.publish(f"faults/cut-{next(numbers)}", SMALL_BYTES, next(numbers))
    hosts = f"{node_paths(scene.lab.topology.node(NODE)).containerd_hosts}/*/hosts.toml"
    listed = scene.lab.run(scene.lab.topology.node(NODE), ["sh", "-c", f"cat {hosts}"]).count("[host.")
    for replica in scene.replicas:
        cut(scene.lab, replica)
    # The file's server, asked last, is the balancer, which says at once that there is nobody.
    assert DIAL_S * listed > failing_pull_s(scene, image)
    wait_until(lambda: not any(one["up"] for one in status_of(scene).values()), STATUS_S)
    heal(scene.lab, "all")
    assert scene.pull(NODE, image.reference).startswith("sha256:")


def failing_pull_s(scene: LabScene, image: Published) -> float:
    """How long a pull takes to fail, in seconds."""
    with Runtime(scene.place(NODE).socket) as runtime:
        began = time.monotonic()
        with pytest.raises(PullFailed):
            runtime.pull(full_name(image.reference))
        return time.monotonic() - began

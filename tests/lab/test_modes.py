"""Every mode serves a runtime's own pulls on every node, by tag and by digest, whatever the upstream asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.clusters import cluster, wait_until
from lab.isolated import needs_lab
from sluice.lab.cri import Runtime
from sluice.lab.evidence import Sending, sendings
from sluice.lab.laboratory import VIRTUAL
from sluice.lab.scene import LabScene, Published

pytestmark = needs_lab
PREFIX = "team/project"
SIZE = 1 << 20
SHAPES: dict[str, dict[str, object]] = {
    "proxy": {"mode": "proxy"},
    "proxy before a bearer's": {"mode": "proxy", "upstream": "bearer", "prefix": PREFIX},
    "local": {"mode": "local"},
    "direct, anonymous": {"mode": "direct"},
    "direct, basic": {"mode": "direct", "upstream": "basic"},
    "direct, bearer below a prefix": {"mode": "direct", "upstream": "bearer", "prefix": PREFIX},
}


@pytest.fixture(scope="module", params=list(SHAPES.values()), ids=list(SHAPES))
def scene(request: pytest.FixtureRequest) -> Iterator[LabScene]:
    with cluster(control_planes=1, workers=1, **request.param) as made:
        yield made


@pytest.fixture(scope="module")
def image(scene: LabScene) -> Published:
    return scene.publish("team/app", SIZE, 1)


def test_every_node_pulls_by_tag_and_by_digest(scene: LabScene, image: Published) -> None:
    """By the CRI, as the kubelet does, with what the credential provider says; and what came runs."""
    for node in scene.nodes:
        by_tag = scene.pull(node, image.reference)
        with Runtime(scene.place(node).socket) as runtime:
            runtime.remove(by_tag)
            assert [] == [one.id for one in runtime.images() if one.id == by_tag]
        assert by_tag == scene.pull(node, f"team/app@{image.digest}")
        assert scene.run(node, f"team/app@{image.digest}").startswith("Hello from a container")


def test_every_node_fetches_the_pause_image_by_itself(scene: LabScene) -> None:
    """A pod starts on a node that lacks the pause image: the runtime fetches it, and nobody hands it a login. Where the
    upstream wants one, it comes from the replicas in Direct mode too."""
    fetched = [start_pod(scene, node) for node in scene.nodes]
    shape = scene.lab.topology.shape
    expected = 0 if (shape.mode, shape.upstream) == ("direct", "anonymous") else len(fetched)
    # The image's id is the digest of its configuration, which no other image shares with it.
    wait_until(lambda: len(sent_by_replicas(scene, fetched[0])) >= expected)
    assert [200] * expected == [one.status for one in sent_by_replicas(scene, fetched[0])]


def start_pod(scene: LabScene, node: str) -> str:
    """The id of the pause image, which was not there before; of the pod nothing is left."""
    place = scene.place(node)
    with Runtime(place.socket) as runtime:
        assert runtime.status(scene.pause) is None
        with scene.sandbox(node) as sandbox:
            assert [sandbox] == [one.name for one in place.runc.glob("*/*")]
        assert [] == list(place.runc.glob("*/*"))
        held = runtime.status(scene.pause)
        assert held is not None
        assert (scene.pause,) == held.tags
        return held.id


def sent_by_replicas(scene: LabScene, digest: str) -> list[Sending]:
    """What replicas answered to those who asked for a blob."""
    return [one for log in scene.logs().values() for one in sendings(log.read_text(), digest)]


def test_a_component_reaches_the_virtual_address(scene: LabScene, image: Published) -> None:
    """skopeo on a node, knowing nothing but the cluster's CA, sees the same image under the same name."""
    machine = scene.lab.topology.node(scene.nodes[-1])
    said = scene.lab.run(machine, ["skopeo", "inspect", f"docker://{VIRTUAL}/{image.reference}"])
    assert (image.digest, f"{VIRTUAL}/team/app") == ((found := json.loads(said))["Digest"], found["Name"])


def test_layers_come_from_where_the_mode_says(scene: LabScene) -> None:
    """In Direct mode from the upstream itself, to which the node has the login; in the others from the replicas."""
    image = scene.publish("team/other", SIZE, 2)
    for node in scene.nodes:
        scene.pull(node, image.reference)
    is_direct = scene.lab.topology.shape.mode == "direct"

    def replicas_sent() -> int:
        return sum(one.sent for one in sent_by_replicas(scene, image.layer))

    if not is_direct:
        wait_until(lambda: replicas_sent() == image.size * len(scene.nodes))
    assert (0 if is_direct else image.size * len(scene.nodes)) == replicas_sent()

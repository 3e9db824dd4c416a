"""The agent of a node whose kubelet runs the balancer: whatever it applies is what the pod runs on, or it says why."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.balanced import needs_haproxy, wait_until
from node.given import node_secrets
from node.podded import IMAGE, Pod, manifest_path, pod_command
from node.running import Node, alive
from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.apply import apply_intent, intend
from sluice.node.balancer import config_path
from sluice.node.programs import NodePrograms
from sluice.testing.server import free_port

pytestmark = needs_haproxy


class PodNode(Node):
    """Its layouts have the balancer in a pod."""

    def layout(self, **changes: object) -> NodeLayout:
        return super().layout(**{"runner": "static-pods", "balancer_image": IMAGE} | changes)

    def replicas_seen(self) -> list[str]:
        return [one.name for one in self.balancer.state().replicas]

    def on(self, port: int) -> dict[str, int]:
        return {"port": port, "metrics_port": self.metrics_port}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[PodNode]:
    with PodNode(tmp_path) as one:
        yield one


@pytest.fixture
def pod(node: PodNode) -> Iterator[Pod]:
    """An agent has applied version 1, and the pod runs on it."""
    node.want(node.layout())
    node.start()
    node.applied(1)
    with Pod(node.layout()) as one:
        wait_until(lambda: node.balancer.state().running, "the pod's balancer")
        yield one


def test_the_pod_follows_the_layout(node: PodNode, pod: Pod) -> None:
    """With another layout the pod's HAProxy has its replicas, on the same first process and the same manifest, which is
    the one that is on disk."""
    before = manifest_path(node.layout()).read_bytes()
    assert pod_command(before) == pod.rendered
    node.want(node.layout(version=2, replicas=node.replicas[:1]))
    node.applied(2)
    assert (["master-1"], True, before) == (
        node.replicas_seen(),
        alive(pod.pid),
        manifest_path(node.layout()).read_bytes(),
    )
    status = node.wait_for(lambda status: status.balancer is True and len(status.replicas) == 1, "the balancer's view")
    assert status.error is None


def test_what_was_applied_while_nobody_told_the_pod(node: PodNode, pod: Pod) -> None:
    """Files that changed while no agent ran, and of which nobody told the pod, are taken over soon after one runs."""
    node.end()
    apply_intent(intend(node.layout(version=2, replicas=node.replicas[1:]), node_secrets()))
    assert ["master-1", "master-2"] == node.replicas_seen()
    node.want(node.layout(version=2, replicas=node.replicas[1:]))
    node.start()
    wait_until(lambda: node.replicas_seen() == ["master-2"], "the agent has told the pod")
    assert node.applied(2).error is None
    assert "has taken the configuration over" in node.log.read_text()
    assert alive(pod.pid)


def test_a_configuration_that_the_pod_refuses(node: PodNode, pod: Pod) -> None:
    """The layout is not applied: the file is the one before, which the pod runs on and a restart of it takes; the
    status has the reason. When the cause is gone it is tried again."""
    config = Path(config_path(node.layout()))
    before = config.read_bytes()
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        node.want(node.layout(version=2, balancer=node.on(port)))
        status = node.wait_for(lambda status: "refuses the configuration" in (status.error or ""), "the reason")
        assert (1, 2, False, before) == (status.version, status.wanted, status.healthy, config.read_bytes())
        assert "is the port taken" in (status.error or "")
        assert (node.balancer.state().running, alive(pod.pid)) == (True, True)
        pod.kill()
        pod.start()
        wait_until(lambda: node.balancer.state().running, "the pod's balancer")
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.applied(2)
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        pass


def test_haproxy_on_the_node_judges_first(node: PodNode, pod: Pod) -> None:
    """Where HAProxy is installed on the node, applying what it refuses changes nothing, and nobody tells the pod."""
    layout = node.layout()
    intent, path = intend(layout, node_secrets()), config_path(layout)
    good = intent.files[path]
    bad = replace(good, content=good.content.replace(b"mode http", b"mode htp"))
    with pytest.raises(ConfigInvalid, match=r"haproxy refuses the balancer's configuration: .*'htp'"):
        apply_intent(replace(intent, files={**intent.files, path: bad}), NodePrograms(layout))
    assert (good.content, 0) == (Path(path).read_bytes(), pod.log.count("Reloading"))


def test_no_pod_runs(node: PodNode) -> None:
    """Without a pod there is nobody to tell, and nothing of ours is started: layouts are applied, and the status says
    that the balancer does not run. The pod's first start is on the last of them."""
    for version in (1, 2):
        node.want(node.layout(version=version, replicas=node.replicas[: 3 - version]))
        if version == 1:
            node.start()
        status = node.applied(version)
        assert (status.error, node.balancer.state().running) == (None, False)
    assert node.wait_for(lambda status: status.balancer is False, "no balancer").error is None
    with Pod(node.layout()):
        wait_until(lambda: node.replicas_seen() == ["master-1"], "the pod on version 2")
        node.wait_for(lambda status: status.balancer is True, "the balancer")

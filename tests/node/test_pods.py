"""Static pods: valid by the schemas that Kubernetes publishes, and with what a node's registry needs."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings

from node.given import authority, node_layout
from node.layouts import layouts
from sluice.cluster.layout import BalancerLayout, NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.balancer import config_path, render_balancer
from sluice.node.pods import render_pods

VERSIONS = ("1.28", "1.31", "1.37")
IMAGE = "registry.sluice.internal:5001/system/sluice:1.0"


def control_plane(**changes: object) -> NodeLayout:
    return node_layout(
        runner="static-pods",
        balancer_image="registry.sluice.internal:5001/system/haproxy:2.6",
        replica_pod={"image": IMAGE, **changes},
    )


def manifests(layout: NodeLayout) -> dict[str, Any]:
    found = [yaml.safe_load(file.content) for file in render_pods(layout).values()]
    return {pod["metadata"]["name"]: pod for pod in found}


@pytest.mark.parametrize("version", VERSIONS)
def test_valid_by_the_published_schema(version: str) -> None:
    """Both pods are valid by the strict schema of old and new Kubernetes, which finds a wrong key."""
    pods = manifests(control_plane())
    assert ["sluice-replica", "sluice-balancer"] == list(pods)
    for pod in pods.values():
        kubernetes_validate.validate(pod, version, strict=True)
        pod["spec"]["containers"][0]["livenessProb"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
            kubernetes_validate.validate(pod, version, strict=True)


@settings(deadline=None, max_examples=50)
@given(layouts())
def test_any_layout(layout: NodeLayout) -> None:
    """Pods come where the kubelet is the runner, each for what the layout has, and mount every path that they name."""
    by_kubelet = layout.runner == "static-pods" and layout.mode != "unmanaged"
    wanted = {
        *(["sluice-replica"] if by_kubelet and layout.replica_pod is not None else []),
        *(["sluice-balancer"] if by_kubelet and "balancer" in layout.sources else []),
    }
    pods = manifests(layout)
    assert wanted == set(pods)
    for pod in pods.values():
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
        (container,) = pod["spec"]["containers"]
        mounted = [one["mountPath"] for one in container["volumeMounts"]]
        named = [word for word in container["command"] if word.startswith("/")]
        assert all(any(word == path or word.startswith(f"{path}/") for path in mounted) for word in named)


def asked(path: str, port: int, tries: int) -> dict[str, Any]:
    """A probe by the kubelet every two seconds; after so many failures in a row it acts."""
    door = {"host": "127.0.0.1", "path": path, "port": port}
    return {"httpGet": door, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": tries}


def probes(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return {key: value for key, value in container.items() if key.endswith("Probe")}


def test_probes() -> None:
    """The kubelet gives both programs five minutes to start, restarts one that does not live, and counts a replica out
    that is not ready; it asks where they say so, which for the balancer is the layout's port for metrics."""
    pods = manifests(control_plane().model_copy(update={"balancer": BalancerLayout(metrics_port=6002)}))
    replica = {
        "startupProbe": asked("/livez", 5002, 150),
        "livenessProbe": asked("/livez", 5002, 5),
        "readinessProbe": asked("/readyz", 5002, 2),
    }
    balancer = {"startupProbe": asked("/livez", 6002, 150), "livenessProbe": asked("/livez", 6002, 5)}
    assert {"sluice-replica": replica, "sluice-balancer": balancer} == {key: probes(pod) for key, pod in pods.items()}


def test_priority() -> None:
    """Both pods have the highest priority, by its class and by the number that this class stands for: nobody derives
    one from the other in a static pod."""
    highest = ("system-node-critical", 2_000_001_000)
    found = {
        key: (pod["spec"].get("priorityClassName"), pod["spec"].get("priority"))
        for key, pod in manifests(control_plane()).items()
    }
    assert {"sluice-replica": highest, "sluice-balancer": highest} == found


def test_replica() -> None:
    """The replica is on the node's network with its data and its share."""
    spec = manifests(control_plane(data="/srv/registry", memory_mib=300, cpu_millis=250))["sluice-replica"]["spec"]
    (container,) = spec["containers"]
    assert spec["hostNetwork"]
    assert {"path": "/srv/registry", "type": "DirectoryOrCreate"} in [one.get("hostPath") for one in spec["volumes"]]
    assert {"requests": {"cpu": "250m", "memory": "300Mi"}, "limits": {"memory": "300Mi"}} == container["resources"]
    assert ["sluice", "serve", "--config", "/etc/sluice/registry/registry.yaml"] == container["command"]
    assert container["image"] == IMAGE


def test_balancer() -> None:
    """The balancer runs on the file that is rendered for it, and can write nothing but its own directory."""
    layout = control_plane()
    spec = manifests(layout)["sluice-balancer"]["spec"]
    (container,) = spec["containers"]
    assert container["command"][-2:] == ["-f", config_path(layout)]
    writable = [one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")]
    assert ["/var/lib/sluice/node/balancer", "/tmp"] == writable


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": [{"name": "master-9", "host": "10.0.0.19"}]},
        {"authorities": authority("another")[0]},
        {"virtual": "other.example:5001"},
        {"balancer": {"nodes": 1000}},
        {"balancer": {"port": 6000}},
    ],
    ids="-".join,
)
def test_same_manifests_for_another_configuration(changes: dict[str, object]) -> None:
    """The manifests stay the same, to the byte, when what the balancer is configured to do changes: with another one
    the kubelet would kill the pod."""
    before = control_plane()
    after = NodeLayout.model_validate(before.model_dump() | changes)
    assert render_balancer(before, "/client.pem") != render_balancer(after, "/client.pem")
    assert render_pods(before) == render_pods(after)


def test_configuration_below_the_root() -> None:
    """A configuration file in ``/`` is refused by name: its directory, which is mounted, would be the whole node."""
    with pytest.raises(ConfigInvalid, match=r"replica_pod\.config is '/registry\.yaml'"):
        render_pods(control_plane(config="/registry.yaml"))

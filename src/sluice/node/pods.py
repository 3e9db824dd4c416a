"""Static pods: a node's registry replica and balancer as manifests that its kubelet runs by itself. PURE.

For clusters where the kubelet is what starts programs (``runner: static-pods``). A pod sees the node's files under the
node's own paths, so that configurations are the same as outside. Directories are mounted, never files: a mount of one
file keeps the one that was there, whatever is renamed over it. A manifest names where configurations are and nothing of
what is in them: with another manifest the kubelet kills the pod, and every stream in it.
"""

from __future__ import annotations

from typing import Any

import yaml

from sluice.cluster.layout import NodeLayout, ReplicaPod
from sluice.errors import ConfigInvalid
from sluice.node.balancer import LIVE_PATH, MASTER_SOCKET, config_path, run_directory
from sluice.node.files import PRIVATE_MODE, Files, FileSpec

NAMESPACE = "kube-system"
REPLICA_NAME, BALANCER_NAME = "sluice-replica", "sluice-balancer"
PRIORITY_CLASS, PRIORITY = "system-node-critical", 2_000_001_000
"""Both, as kubeadm writes them: no admission controller sees a static pod, which would make the one from the other."""
OPERATIONS_PORT = 5002  # a registry's ``operations_listen``
REPLICA_LEAVES_S = 45  # ``limits.drain_s`` and some
BALANCER_LEAVES_S = 15
BALANCER_MEMORY_MIB, BALANCER_MEMORY_MAX_MIB, BALANCER_CPU_MILLIS = 32, 256, 50
START_TRIES, PROBE_S = 150, 2

Manifest = dict[str, Any]


def render_pods(layout: NodeLayout) -> Files:
    """The manifests; none where the kubelet runs nothing of ours.

    Raises ConfigInvalid for a replica's configuration directly below ``/``, whose directory would be the whole node.
    """
    if layout.runner != "static-pods" or layout.mode == "unmanaged":
        return {}
    pods = []
    if layout.replica_pod is not None:
        pods.append(replica_pod(layout.replica_pod))
    if "balancer" in layout.sources:
        pods.append(balancer_pod(layout))
    return {_path(layout, pod): FileSpec(_written(pod), PRIVATE_MODE) for pod in pods}


def replica_pod(pod: ReplicaPod) -> Manifest:
    """``sluice serve`` on the node's network."""
    folder = pod.config.rpartition("/")[0]
    if not folder:
        raise ConfigInvalid(f"replica_pod.config is {pod.config!r}: put it in a directory of its own, which is mounted")
    memory = f"{pod.memory_mib}Mi"
    container = {
        "name": REPLICA_NAME,
        "image": pod.image,
        "command": ["sluice", "serve", "--config", pod.config],
        "resources": {
            "requests": {"cpu": f"{pod.cpu_millis}m", "memory": memory},
            "limits": {"memory": memory},  # no limit on the CPU: a throttled registry is a failed check
        },
        "startupProbe": _probe("/livez", OPERATIONS_PORT, START_TRIES),
        "livenessProbe": _probe("/livez", OPERATIONS_PORT, 5),
        "readinessProbe": _probe("/readyz", OPERATIONS_PORT, 2),
    }
    folders = {"config": (folder, False), "data": (pod.data, True)}
    return _pod(REPLICA_NAME, container, folders, REPLICA_LEAVES_S)


def balancer_pod(layout: NodeLayout) -> Manifest:
    """HAProxy on the node's network, with the configuration of ``balancer``."""
    assert layout.balancer_image is not None  # the layout's own rule
    container = {
        "name": BALANCER_NAME,
        "image": layout.balancer_image,
        "command": balancer_command(layout),
        "resources": {
            "requests": {"cpu": f"{BALANCER_CPU_MILLIS}m", "memory": f"{BALANCER_MEMORY_MIB}Mi"},
            "limits": {"memory": f"{BALANCER_MEMORY_MAX_MIB}Mi"},
        },
        "startupProbe": _probe(LIVE_PATH, layout.balancer.metrics_port, START_TRIES),
        "livenessProbe": _probe(LIVE_PATH, layout.balancer.metrics_port, 5),
    }
    folders = {
        "config": (layout.paths.balancer, False),
        "secrets": (layout.paths.secrets, False),
        "run": (run_directory(layout), True),
    }
    return _pod(BALANCER_NAME, container, folders, BALANCER_LEAVES_S)


def balancer_command(layout: NodeLayout) -> list[str]:
    """HAProxy as a pod's first process. Its master listens in the directory that the node shares, for ``reload``."""
    master = f"unix@{MASTER_SOCKET},mode,600,level,admin"
    return ["haproxy", "-W", "-db", "-S", master, "-C", run_directory(layout), "-f", config_path(layout)]


def _pod(name: str, container: Manifest, folders: dict[str, tuple[str, bool]], leaves_s: int) -> Manifest:
    mounts = [{"name": key, "mountPath": path, "readOnly": not writes} for key, (path, writes) in folders.items()]
    volumes = [
        {"name": key, "hostPath": {"path": path, "type": "DirectoryOrCreate"}} for key, (path, _) in folders.items()
    ]
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "sluice"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "Default",  # the node's: the cluster's may need an image from here first
            "priorityClassName": PRIORITY_CLASS,
            "priority": PRIORITY,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": leaves_s,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    **container,
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": _rights(),
                    "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - inside the pod
                }
            ],
            "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}],
        },
    }


def _rights() -> Manifest:
    """Root, whose files these are on the node, without any of its powers."""
    return {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _probe(path: str, port: int, tries: int) -> Manifest:
    return {
        "httpGet": {"host": "127.0.0.1", "path": path, "port": port},
        "periodSeconds": PROBE_S,
        "timeoutSeconds": PROBE_S,
        "failureThreshold": tries,
    }


def _path(layout: NodeLayout, pod: Manifest) -> str:
    return f"{layout.paths.static_pods}/{pod['metadata']['name']}.yaml"


def _written(pod: Manifest) -> bytes:
    content = yaml.safe_dump(pod, sort_keys=False).encode()
    if yaml.safe_load(content) != pod:
        raise ValueError("a pod's manifest does not read back as it was written")
    return content

"""The documents of a laboratory's nodes: from its topology, what ``sluice node run`` is given on each. PURE.

A mode is an order of sources (``cluster/layout``), so this is the one place of the laboratory that knows modes.
"""

from __future__ import annotations

from sluice.cluster.layout import BalancerLayout, NodeLayout, Paths, Remote, Replica, SourceKind
from sluice.lab.topology import UPSTREAM_PORT, LabMode, Machine, Topology

SOURCES: dict[LabMode, tuple[SourceKind, ...]] = {
    "direct": ("upstream", "replicas"),
    "proxy": ("balancer", "replicas"),
    "local": ("balancer", "replicas"),
}


def upstream_address(topology: Topology) -> str:
    """Where the images of the virtual address come from in Direct and Proxy mode."""
    if topology.shape.outside is not None:
        return topology.shape.outside.address
    prefix = f"/{topology.shape.prefix}" if topology.shape.prefix else ""
    return f"https://{topology.upstream.address}:{UPSTREAM_PORT}{prefix}"


def node_paths(machine: Machine) -> Paths:
    """Everything below the node's own directory, under the names that it has on a real machine."""
    home = machine.home
    return Paths(
        state=f"{home}/state",
        containerd_config=f"{home}/containerd/config.toml",
        containerd_hosts=f"{home}/certs.d",
        containers=f"{home}/containers",
        balancer=f"{home}/balancer",
        static_pods=f"{home}/manifests",
        kubelet_credentials=f"{home}/kubelet/credential-provider.yaml",
        kubelet_plugins=f"{home}/kubelet/plugins",
        secrets=f"{home}/secrets",
    )


def node_layout(topology: Topology, machine: Machine, servers_ca: str, upstream_ca: str | None) -> NodeLayout:
    """The layout of a node.

    ``servers_ca`` vouches for the replicas and ``upstream_ca`` for the upstream, None where the system's do; both PEM.
    """
    return NodeLayout(
        version=1,
        node=machine.name,
        mode=topology.shape.mode,
        sources=SOURCES[topology.shape.mode],
        replicas=tuple(Replica(name=one.name, host=one.address) for one in topology.control_planes),
        authorities=servers_ca,
        upstream=Remote(address=upstream_address(topology), authorities=upstream_ca),
        balancer=BalancerLayout(nodes=len(topology.nodes)),
        paths=node_paths(machine),
    )

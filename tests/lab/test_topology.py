"""A laboratory on paper: names, addresses, network commands, hosts and layouts, before anything is made of them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node.given import authority

from sluice.cluster.documents import dump_document, parse_document, validate_document
from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.lab.layouts import node_layout, upstream_address
from sluice.lab.mounts import hosts
from sluice.lab.network import DISABLED, FORWARDING, link_command, network_commands
from sluice.lab.topology import CONTROL_PLANES_MAX, WORKERS_MAX, LabShape, plan_topology

INTERFACE_LENGTH_MAX = 15  # IFNAMSIZ of netdevice(7), less the zero at its end
VIRTUAL = "registry.sluice.internal:5001"
shapes = st.builds(
    LabShape,
    control_planes=st.integers(1, CONTROL_PLANES_MAX),
    workers=st.integers(0, WORKERS_MAX),
    mode=st.sampled_from(["direct", "proxy", "local"]),
    upstream=st.sampled_from(["anonymous", "basic", "bearer"]),
    prefix=st.sampled_from(["", "team/project"]),
)


@given(shapes)
def test_no_two_machines_are_alike(shape: LabShape) -> None:
    """Machines differ in name, address and Ethernet address, and an interface can be called like each."""
    machines = plan_topology(shape).machines
    assert len(machines) == 1 + shape.control_planes + shape.workers
    for values in (
        [one.name for one in machines],
        [one.address for one in machines],
        [one.ethernet for one in machines],
    ):
        assert len(values) == len(set(values))
    assert max(len(one.name) for one in machines) <= INTERFACE_LENGTH_MAX
    assert all(ipaddress.ip_address(one.address) in ipaddress.ip_network("10.77.0.0/24") for one in machines)


@settings(deadline=None, max_examples=25)
@given(shapes)
def test_layouts_are_valid_and_come_back(shape: LabShape) -> None:
    """Each node's layout passes the validation of its readers, and is the same after it has been on disk."""
    topology = plan_topology(shape)
    for node in topology.nodes:
        layout = node_layout(topology, node, authority()[0], authority("upstream")[0])
        assert layout == parse_document(NodeLayout, dump_document(layout), "layout.json")
        assert layout.mode == shape.mode
        assert [one.host for one in layout.replicas] == [one.address for one in topology.control_planes]


@given(shapes)
def test_parts_have_names_of_their_own(shape: LabShape) -> None:
    """Every part is found by its name, and only Direct mode has no balancers."""
    topology = plan_topology(shape)
    assert all(topology.part(part.name) == part for part in topology.parts)
    balancers = [part for part in topology.parts if part.kind == "balancer"]
    assert len(balancers) == (0 if shape.mode == "direct" else len(topology.nodes))


def test_network_touches_only_namespaces() -> None:
    """No command changes the network of whoever runs it: each names the namespace that it works in."""
    topology = plan_topology(LabShape(control_planes=2, workers=1))
    named = {"hub", *(one.name for one in topology.machines)}
    for command in network_commands(topology):
        words = list(command)
        namespace = words[3] if words[:3] == ["ip", "netns", "add"] else words[2]
        assert words[0] == "ip"
        assert words[1] in {"netns", "-n"}
        assert namespace in named


def test_cut_and_healed_link() -> None:
    """A cut is the bridge port's state 0, its healing state 3 (``bridge(8)``: disabled, forwarding)."""
    assert ["state", "0"] == list(link_command("cp-1", DISABLED))[-2:]
    assert ["state", "3"] == list(link_command("cp-1", FORWARDING))[-2:]


def test_virtual_address_on_a_node() -> None:
    """The virtual address leads to every control plane; on one of them, to itself first."""
    topology = plan_topology(LabShape(control_planes=2, workers=1))
    lines = hosts(topology, topology.machine("cp-2"), VIRTUAL).splitlines()
    found = [line.split()[0] for line in lines if "registry.sluice.internal" in line]
    assert ["10.77.0.12", "10.77.0.11"] == found


def test_upstream_below_a_path() -> None:
    """An upstream's path is part of its address."""
    topology = plan_topology(LabShape(upstream="bearer", prefix="team/project"))
    assert upstream_address(topology) == "https://10.77.0.2:5000/team/project"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"control_planes": 0}, "control_planes (0)"),
        ({"control_planes": CONTROL_PLANES_MAX + 1}, "control_planes"),
        ({"workers": WORKERS_MAX + 1}, "workers"),
        ({"mode": "unmanaged"}, "mode ('unmanaged')"),
        ({"prefix": "a//b"}, "prefix ('a//b')"),
        ({"prefix": "../x"}, "prefix"),
        ({"prefix": "a" * 101}, "of up to 100 characters"),
        ({"prefix": "team/project\n"}, "for example team/project"),
        ({"replica_disk_mib": 1}, "replica_disk_mib (1)"),
    ],
)
def test_impossible_shapes(given: dict[str, object], said: str) -> None:
    """A shape that cannot be is refused with the name of its key."""
    with pytest.raises(ConfigInvalid) as refused:
        validate_document(LabShape, given, "sluice lab up")
    assert said in refused.value.message


@pytest.mark.parametrize("name", ["cp-2", "worker-9", "", "cp-1/", "hub"])
def test_unknown_machine(name: str) -> None:
    """An unknown machine is refused with the names that there are."""
    topology = plan_topology(LabShape(control_planes=1, workers=1))
    with pytest.raises(ConfigInvalid, match="upstream, cp-1, worker-1"):
        topology.machine(name)


def test_upstream_is_no_node() -> None:
    """Nothing is pulled on the upstream's machine."""
    with pytest.raises(ConfigInvalid, match="name one of cp-1"):
        plan_topology(LabShape(control_planes=1, workers=0)).node("upstream")

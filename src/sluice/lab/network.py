"""The laboratory's network: what ``ip`` and ``bridge`` are told to make it, and to cut and heal a link. PURE.

Every machine has a network namespace whose ``eth0`` hangs on one bridge, and the bridge has a namespace of its own
(``hub``). A cut is a bridge port that is disabled: both ends keep their carrier and their neighbours' addresses, so
packets vanish without a word, as they do behind a dead switch; nobody is told "no route to host".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sluice.lab.topology import PREFIX_BITS, Machine, Topology

HUB, BRIDGE = "hub", "br0"
DISABLED, FORWARDING = "disabled", "forwarding"
_STATES = {DISABLED: "0", FORWARDING: "3"}
Command = Sequence[str]


def network_commands(topology: Topology) -> Iterable[Command]:
    """Everything from nothing, in order. They are run where ``ip netns`` keeps its names to itself."""
    yield ("ip", "netns", "add", HUB)
    yield ("ip", "-n", HUB, "link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0")
    yield ("ip", "-n", HUB, "link", "set", BRIDGE, "up")
    for machine in topology.machines:
        yield from _attach(machine)
    for machine in topology.machines:
        for other in topology.machines:
            if other != machine:
                yield from _introduce(machine, other)


def link_command(machine: str, state: str) -> Command:
    """Cut (``DISABLED``) or heal (``FORWARDING``) a machine's link."""
    return ("ip", "netns", "exec", HUB, "bridge", "link", "set", "dev", machine, "state", _STATES[state])


def links_command() -> Command:
    """Print all links as JSON: a list of objects with ``ifname`` and ``state``."""
    return ("ip", "netns", "exec", HUB, "bridge", "-j", "link", "show")


def _attach(machine: Machine) -> Iterable[Command]:
    name = machine.name
    yield ("ip", "netns", "add", name)
    yield (
        *("ip", "-n", HUB, "link", "add", name, "type", "veth"),
        *("peer", "name", "eth0", "address", machine.ethernet, "netns", name),
    )
    yield ("ip", "-n", HUB, "link", "set", name, "master", BRIDGE, "up")
    yield ("ip", "-n", name, "link", "set", "lo", "up")
    yield ("ip", "-n", name, "addr", "add", f"{machine.address}/{PREFIX_BITS}", "dev", "eth0")
    yield ("ip", "-n", name, "link", "set", "eth0", "up")


def _introduce(machine: Machine, other: Machine) -> Iterable[Command]:
    yield (
        *("ip", "-n", machine.name, "neigh", "replace", other.address),
        *("lladdr", other.ethernet, "dev", "eth0", "nud", "permanent"),
    )

"""What a laboratory mounts: a private ``/run``, each replica's own disk, each node's own ``/etc``. PURE.

The commands run in the laboratory's mount namespace, which the rest of the machine does not see and which ends with it.
A node's ``/etc`` is the machine's with the node's changes above it: there the virtual address has the control planes'
addresses, and the cluster's CA is known to every program.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from sluice.lab.topology import RUN, Machine, Topology

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Where OpenSSL, curl and Go look on Debian."""
Command = Sequence[str]


def ground_commands() -> Iterable[Command]:
    """A ``/run`` of our own first: there ``ip netns``, containerd and runc keep what must not be seen outside."""
    yield ("mount", "-t", "tmpfs", "-o", "mode=0755,size=256m", "sluice-lab", "/run")
    yield ("mkdir", "-p", f"{RUN}/.keepers", "/run/netns", "/run/lock")


def machine_commands(topology: Topology, machine: Machine, directory: str) -> Iterable[Command]:
    """A machine's directory (``directory`` holds all of them) at its short name, and a replica's disk."""
    yield ("mkdir", "-p", machine.home)
    yield ("mount", "--bind", f"{directory}/{machine.name}", machine.home)
    if machine.role == "control-plane":
        yield ("mkdir", "-p", data_of(machine))
        yield ("mount", "-t", "tmpfs", "-o", disk_options(topology), "sluice-replica", data_of(machine))
        yield ("cp", f"{machine.home}/users/users.json", data_of(machine))


def disk_options(topology: Topology) -> str:
    """How a replica's disk is mounted: memory that is taken only as it is written."""
    return f"mode=0700,size={topology.shape.replica_disk_mib}m"


def data_of(machine: Machine) -> str:
    """The replica's data directory."""
    return f"{machine.home}/data"


def node_commands(topology: Topology, machine: Machine, virtual: str, authority: str) -> Iterable[Command]:
    """A node's own mount namespace with its ``/etc``. ``authority``: path of the servers' CA.

    A process that sleeps keeps it, whose number is in ``keeper_of``: a namespace cannot be relied upon to be mounted
    by a name, since Linux compares numbers that have no order on several processors (6.18, ``mnt_ns_loop``).
    """
    upper, work = f"{RUN}/.etc/{machine.name}/upper", f"{RUN}/.etc/{machine.name}/work"
    yield ("mkdir", "-p", upper, work)
    inner = [
        ("mount", "-t", "overlay", "sluice-etc", "-o", f"lowerdir=/etc,upperdir={upper},workdir={work}", "/etc"),
        ("mkdir", "-p", f"/etc/containers/certs.d/{virtual}", "/etc/ssl/certs"),
        ("touch", CA_BUNDLE),
        ("cp", CA_BUNDLE, f"{RUN}/.etc/{machine.name}/system.crt"),
    ]
    lines = [shlex.join(command) for command in inner]
    lines.append(trust_script(machine, virtual, authority))
    lines.append(f"printf %s {shlex.quote(hosts(topology, machine, virtual))} > /etc/hosts")
    lines.append("setsid sleep infinity </dev/null >/dev/null 2>&1 &")
    lines.append(f"echo $! > {keeper_of(machine)}")
    yield ("unshare", "--mount", "--propagation", "private", "sh", "-euc", "\n".join(lines))


def trust_script(machine: Machine, virtual: str, authority: str) -> str:
    """For a shell on a node: let every program there trust what is in the file ``authority`` beside the system's."""
    system, own = f"{RUN}/.etc/{machine.name}/system.crt", f"/etc/containers/certs.d/{virtual}/ca.crt"
    return "\n".join(
        (
            shlex.join(("cp", authority, own)),
            f"{shlex.join(('cat', system, authority))} > {CA_BUNDLE}.new",
            shlex.join(("mv", f"{CA_BUNDLE}.new", CA_BUNDLE)),
        )
    )


def keeper_of(machine: Machine) -> str:
    """The file with the number of the process that keeps a node's mount namespace, as the laboratory counts."""
    return f"{RUN}/.keepers/{machine.name}"


def hosts(topology: Topology, machine: Machine, virtual: str) -> str:
    """``/etc/hosts``: the virtual address' host is every control plane, the node's own first if it is one."""
    host = virtual.rpartition(":")[0]
    own_first = sorted(topology.control_planes, key=lambda one: one != machine)
    lines = [f"127.0.0.1 localhost {machine.name}", "::1 localhost"]
    lines += [f"{one.address} {host}" for one in own_first]
    lines += [f"{one.address} {one.name}" for one in topology.machines if one != machine]
    return "".join(f"{line}\n" for line in lines)

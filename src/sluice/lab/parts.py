"""How each part is started, and how it shows that it is ready.

A part is started by ``Ground.start`` on its machine and goes on by itself; the balancer is the agent's to start, as on
a real node. Ready means that it answers where its clients ask it.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sluice.cluster.documents import load_document
from sluice.cluster.layout import BALANCER_PORT
from sluice.cluster.status import NodeStatus
from sluice.config import CONFIG_VARIABLE
from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.containerd import snapshotter
from sluice.lab.containerd_config import ContainerdPlace, installed_version, render_config
from sluice.lab.credentials import LAYOUT_NAME, SECRETS_NAME
from sluice.lab.ground import Ground
from sluice.lab.layouts import node_paths
from sluice.lab.provision import REGISTRY_NAME
from sluice.lab.state import LabDirectory
from sluice.lab.topology import NETWORK, OPERATIONS_PORT, PREFIX_BITS, UPSTREAM_PORT, Machine, Part, PartKind, Topology
from sluice.node.kubelet import PROGRAM
from sluice.node.record import STATUS
from sluice.pki.durable import make_directory

ANSWER_S = 2.0
"""How long a part may take for one answer while it is waited for, in seconds."""
PAUSE_IMAGE = "registry.sluice.internal:5001/lab/pause:1"
SLUICE = (sys.executable, "-m", "sluice")


@dataclass(frozen=True, slots=True)
class Launch:
    """A command line and what it needs in its environment."""

    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def containerd_place(machine: Machine) -> ContainerdPlace:
    """Where a node's containerd is, as the node sees it."""
    return ContainerdPlace(Path(f"{machine.home}/containerd"), Path(node_paths(machine).containerd_hosts), PAUSE_IMAGE)


def prepare_containerd(directory: LabDirectory, machine: Machine) -> None:
    """Write its configuration and the directories that it looks in."""
    outside = directory.machine(machine) / "containerd"
    make_directory(outside)
    make_directory(directory.machine(machine) / "certs.d")
    configuration = render_config(containerd_place(machine), installed_version(), snapshotter(outside))
    (outside / "config.toml").write_text(configuration, encoding="utf-8")


def install_plugin(directory: LabDirectory, machine: Machine) -> None:
    """Put the kubelet's credential provider where the layout says that it is."""
    plugins = directory.machine(machine) / "kubelet" / "plugins"
    make_directory(plugins)
    (plugins / PROGRAM).symlink_to(Path(sys.executable).with_name(PROGRAM))


def launch_of(topology: Topology, part: Part) -> Launch | None:
    """How a part is started; None for one that another starts."""
    home = part.machine.home
    match part.kind:
        case "upstream" if topology.shape.upstream != "bearer":
            return Launch(("docker-registry", "serve", f"{home}/{REGISTRY_NAME}"))
        case "upstream" | "replica":
            return Launch((*SLUICE, "serve", "--config", f"{home}/{REGISTRY_NAME}"))
        case "containerd":
            place = containerd_place(part.machine)
            variables = {"TMPDIR": str(place.directory), **_proxy_variables(topology)}
            return Launch(("containerd", "--config", str(place.config)), variables)
        case "relay":
            return Launch((sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py"))))
        case "agent":
            documents = ("--layout", f"{home}/{LAYOUT_NAME}", "--secrets", f"{home}/{SECRETS_NAME}")
            return Launch((*SLUICE, "node", "run", *documents))
    return None


def command_variables(topology: Topology, machine: Machine) -> dict[str, str]:
    """What ``sluice`` finds a machine's documents by, where a user runs it there: its layout, secrets and registry."""
    found: dict[str, str] = {}
    if machine.is_node:
        found |= {
            "SLUICE_NODE_LAYOUT": f"{machine.home}/{LAYOUT_NAME}",
            "SLUICE_NODE_SECRETS": f"{machine.home}/{SECRETS_NAME}",
        }
    registry = Part(machine, "replica" if machine.is_node else "upstream")
    launch = launch_of(topology, registry) if registry in topology.parts else None
    if launch is not None and launch.command[: len(SLUICE)] == SLUICE:
        found[CONFIG_VARIABLE] = f"{machine.home}/{REGISTRY_NAME}"
    return found


def _proxy_variables(topology: Topology) -> dict[str, str]:
    """How containerd finds a registry outside (Go's ``http.ProxyFromEnvironment``)."""
    if topology.shape.outside is None:
        return {}
    return {"HTTPS_PROXY": topology.relay_url, "NO_PROXY": f"{NETWORK}.0/{PREFIX_BITS},127.0.0.1,localhost"}


def start_part(ground: Ground, directory: LabDirectory, topology: Topology, part: Part) -> None:
    """Start it without waiting. Raises Unavailable. Does nothing for a part that another starts."""
    launch = launch_of(topology, part)
    if launch is None:
        return
    if part.kind == "relay":
        with ground.listen(part.machine, (part.machine.address, UPSTREAM_PORT)) as listener:
            ground.start_outside(part.name, launch.command, directory.log(part.name), listener)
    else:
        ground.start(part.name, part.machine, launch.command, directory.log(part.name), launch.variables)


def is_ready(ground: Ground, part: Part) -> bool:
    """Whether it answers now."""
    probes = {
        "upstream": _upstream_answers,
        "relay": _relay_answers,
        "replica": _replica_answers,
        "containerd": _containerd_answers,
        "balancer": _balancer_answers,
        "agent": _agent_answers,
    }
    with contextlib.suppress(OSError, http.client.HTTPException, Unavailable, ConfigInvalid):
        return probes[part.kind](ground, part.machine)
    return False


WAITED_S: Mapping[PartKind, float] = {
    "upstream": 30,
    "relay": 30,
    "replica": 30,
    "containerd": 30,
    "balancer": 45,
    "agent": 45,
}
"""How long a part may take to become ready, in seconds."""


def fetch(
    ground: Ground, machine: Machine, address: tuple[str, int], path: str, *, tls: bool = False
) -> tuple[int, bytes]:
    """Status and body of a GET made on a machine; raises OSError or HTTPException. TLS is not verified: a probe."""
    with ground.connect(machine, address, ANSWER_S) as plain:
        connection = http.client.HTTPConnection(address[0], address[1], timeout=ANSWER_S)
        connection.sock = unverified().wrap_socket(plain) if tls else plain
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def applied_version(ground: Ground, machine: Machine) -> int | None:
    """The version of the layout that a node's agent has applied without a complaint."""
    written = ground.inside(node_paths(machine).state) / STATUS
    if not written.exists():
        return None
    status = load_document(NodeStatus, written)
    blocked = any(finding.blocking for finding in status.findings)
    return None if status.error is not None or blocked or status.version != status.wanted else status.version


def _upstream_answers(ground: Ground, machine: Machine) -> bool:
    return fetch(ground, machine, (machine.address, UPSTREAM_PORT), "/v2/", tls=True)[0] in {200, 401}


def _relay_answers(ground: Ground, machine: Machine) -> bool:
    return fetch(ground, machine, (machine.address, UPSTREAM_PORT), "/")[0] == 405


def _replica_answers(ground: Ground, machine: Machine) -> bool:
    return fetch(ground, machine, ("127.0.0.1", OPERATIONS_PORT), "/readyz")[0] == 200


def _balancer_answers(ground: Ground, machine: Machine) -> bool:
    return fetch(ground, machine, ("127.0.0.1", BALANCER_PORT), "/v2/")[0] == 200


def _containerd_answers(ground: Ground, machine: Machine) -> bool:
    from sluice.lab.cri import Runtime  # gRPC is loaded by those who ask a runtime, not by all  # noqa: PLC0415

    socket = ground.inside(str(containerd_place(machine).socket))
    if not socket.exists():
        return False
    with Runtime(socket) as runtime:
        runtime.version()
    return True


def _agent_answers(ground: Ground, machine: Machine) -> bool:
    return applied_version(ground, machine) is not None


def unverified() -> ssl.SSLContext:
    """For probes, which ask whether something answers, not who."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context

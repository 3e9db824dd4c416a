"""A laboratory on paper: which machines there are, their addresses, and which parts run where. PURE.

``up`` builds what this says, ``status`` compares it with what is there, ``faults`` takes parts of it away. Nothing of a
laboratory's network touches the machine it runs on: every address exists only inside network namespaces that live in a
namespace of their own, so that they are the same in every laboratory and never collide with anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sluice.cluster.layout import BALANCER_PORT, REPLICA_PORT
from sluice.config.remote import UserName
from sluice.config.section import Section, conflict
from sluice.config.values import Count, FilePath, Upstream
from sluice.errors import ConfigInvalid
from sluice.wire.address import parse_upstream

CONTROL_PLANES_MAX, WORKERS_MAX = 9, 50
DISK_MIB_MIN, DISK_MIB_MAX = 64, 1 << 20
PATH_LENGTH_MAX = 100
NETWORK = "10.77.0"
"""First three bytes of every machine's address."""
UPSTREAM_HOST, CONTROL_PLANE_FIRST, WORKER_FIRST = 2, 11, 101
PREFIX_BITS = 24
PUBLIC_PORT, OPERATIONS_PORT, UPSTREAM_PORT = 5001, 5002, 5000
RUN = "/run/sluice-lab"
"""Where a laboratory's programs find their machine's directory: a short path, because socket names are bounded."""
UPSTREAM = "upstream"

LabMode = Literal["direct", "proxy", "local"]
UpstreamKind = Literal["anonymous", "basic", "bearer"]
PartKind = Literal["upstream", "relay", "replica", "containerd", "balancer", "agent"]
Role = Literal["upstream", "control-plane", "worker"]


def read_path(value: object) -> str:
    """Where the laboratory's upstream holds the images. Raises ValueError with the remedy."""
    text = str(value)
    if len(text) > PATH_LENGTH_MAX or re.fullmatch(r"([a-z0-9]+(/[a-z0-9]+)*)?", text, re.ASCII) is None:
        raise ValueError(
            f"is no path of up to {PATH_LENGTH_MAX} characters: write parts of a-z and 0-9 with / between them, "
            "for example team/project"
        )
    return text


class Outside(Section):
    """A registry outside of the laboratory, which is reached through a relay; by TLS alone, which passes it unseen."""

    address: Upstream
    user: UserName | None = None
    password_file: FilePath | None = None
    ca: FilePath | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if parse_upstream(self.address).scheme != "https":
            raise conflict("address", f"is {self.address}: only https:// passes the laboratory's relay")
        if (self.user is None) != (self.password_file is None):
            raise conflict("user", "and the file with its password belong together: give both or neither")
        return self


class LabShape(Section):
    """What the user wants: how many nodes, in which mode, before which upstream, with how much disk for a replica."""

    control_planes: Annotated[Count, Field(ge=1, le=CONTROL_PLANES_MAX)] = 3
    workers: Annotated[Count, Field(ge=0, le=WORKERS_MAX)] = 2
    mode: LabMode = "proxy"
    upstream: UpstreamKind = "anonymous"
    prefix: Annotated[str, BeforeValidator(read_path)] = ""
    outside: Outside | None = None
    replica_disk_mib: Annotated[Count, Field(ge=DISK_MIB_MIN, le=DISK_MIB_MAX)] = 2048

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.prefix == "v2":
            raise conflict("prefix", "is v2, the API's own path: choose another, for example team/project")
        if self.outside is not None and (self.prefix or self.upstream != "anonymous"):
            raise conflict("prefix", "is for the laboratory's own upstream: write the path into the address")
        return self


@dataclass(frozen=True, slots=True)
class Machine:
    """One network namespace with an address of its own; nodes have a mount namespace too."""

    name: str
    role: Role
    host: int

    @property
    def address(self) -> str:
        """IPv4, ``10.77.0.11``."""
        return f"{NETWORK}.{self.host}"

    @property
    def ethernet(self) -> str:
        """A locally administered MAC address, made from the IP address so that everyone knows everyone's."""
        return f"02:00:00:00:00:{self.host:02x}"

    @property
    def is_node(self) -> bool:
        """Whether containerd runs there."""
        return self.role != "upstream"

    @property
    def home(self) -> str:
        """Its directory as its own programs see it."""
        return f"{RUN}/{self.name}"


@dataclass(frozen=True, slots=True)
class Part:
    """A program that runs on a machine."""

    machine: Machine
    kind: PartKind

    @property
    def name(self) -> str:
        """How people call it: ``upstream``, ``cp-1/replica``."""
        return UPSTREAM if self.kind == "upstream" else f"{self.machine.name}/{self.kind}"

    @property
    def address(self) -> str:
        """Where it listens, for people; empty for what listens nowhere."""
        match self.kind:
            case "upstream" | "relay":
                return f"{self.machine.address}:{UPSTREAM_PORT}"
            case "replica":
                return f"{self.machine.address}:{REPLICA_PORT}"
            case "balancer":
                return f"127.0.0.1:{BALANCER_PORT}"
            case "containerd":
                return f"{self.machine.home}/containerd/c.sock"
        return ""


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that a laboratory of a shape consists of."""

    shape: LabShape
    machines: tuple[Machine, ...]

    @property
    def upstream(self) -> Machine:
        """Where the upstream registry runs."""
        return self.machines[0]

    @property
    def relay_url(self) -> str:
        """The proxy through which a registry outside is reached."""
        return f"http://{self.upstream.address}:{UPSTREAM_PORT}"

    @property
    def nodes(self) -> tuple[Machine, ...]:
        """Control planes, then workers."""
        return self.machines[1:]

    @property
    def control_planes(self) -> tuple[Machine, ...]:
        """Where replicas run."""
        return tuple(one for one in self.machines if one.role == "control-plane")

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that runs, in the order in which people read it. Direct mode has no balancers."""
        kinds: tuple[PartKind, ...] = ("containerd", "agent") if self.shape.mode == "direct" else NODE_PARTS
        replicas = tuple(Part(one, "replica") for one in self.control_planes)
        on_nodes = tuple(Part(node, kind) for node in self.nodes for kind in kinds)
        source: PartKind = "upstream" if self.shape.outside is None else "relay"
        return (Part(self.upstream, source), *replicas, *on_nodes)

    def machine(self, name: str) -> Machine:
        """Raises ConfigInvalid, which lists the names there are."""
        found = next((one for one in self.machines if one.name == name), None)
        if found is None:
            names = ", ".join(one.name for one in self.machines)
            raise ConfigInvalid(f"no machine {name[:80]!r} in this laboratory: name one of {names}")
        return found

    def node(self, name: str) -> Machine:
        """A machine that pulls. Raises ConfigInvalid like ``machine``."""
        found = self.machine(name)
        if not found.is_node:
            raise ConfigInvalid(f"{name} is no node: name one of {', '.join(one.name for one in self.nodes)}")
        return found

    def part(self, name: str) -> Part:
        """Raises ConfigInvalid, which lists the names there are."""
        found = next((one for one in self.parts if one.name == name), None)
        if found is None:
            names = ", ".join(one.name for one in self.parts)
            raise ConfigInvalid(f"no part {name[:80]!r} in this laboratory: name one of {names}")
        return found


NODE_PARTS: tuple[PartKind, ...] = ("containerd", "balancer", "agent")


def plan_topology(shape: LabShape) -> Topology:
    """Machines in a fixed order: the upstream, ``cp-1`` …, ``worker-1`` …"""
    control_planes = (
        Machine(f"cp-{place + 1}", "control-plane", CONTROL_PLANE_FIRST + place)
        for place in range(shape.control_planes)
    )
    workers = (Machine(f"worker-{at + 1}", "worker", WORKER_FIRST + at) for at in range(shape.workers))
    return Topology(shape, (Machine(UPSTREAM, "upstream", UPSTREAM_HOST), *control_planes, *workers))

"""A laboratory that is there: found by its directory, looked at, and used.

What ``cli/lab``, the faults and the tests work with. Everything it says is asked of the kernel and of the parts at that
moment.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sluice.cluster.layout import NodeLayout
from sluice.errors import PullFailed
from sluice.lab.ground import Ground, find_init, require_root
from sluice.lab.layouts import node_paths
from sluice.lab.mounts import data_of
from sluice.lab.network import DISABLED, links_command
from sluice.lab.parts import containerd_place, is_ready
from sluice.lab.processes import NotRunning, Running, age_s, running_parts
from sluice.lab.state import LabDirectory, LabState
from sluice.lab.topology import Machine, Part, Topology, plan_topology

VIRTUAL: str = NodeLayout.model_fields["virtual"].default
PULL_S = 600.0
"""How long a pull may take, in seconds."""
PROBES = 8
"""How many parts are asked at once whether they answer."""

Condition = Literal["ready", "no answer", "frozen", "stopped"]


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A part as it is now. ``pid`` as this machine counts; ``up_s`` in seconds; ``note`` says what was done to it."""

    part: str
    state: Condition
    pid: int | None
    address: str
    resident_bytes: int
    up_s: float
    note: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it answers, and nothing has been taken away that it works with: its machine's link, its disk."""
        return self.state == "ready" and not self.note


@dataclass(frozen=True, slots=True)
class Laboratory:
    """One that runs."""

    directory: LabDirectory
    state: LabState
    topology: Topology
    ground: Ground

    def running(self) -> dict[str, list[Running]]:
        """Every part's processes."""
        return running_parts(self.ground, self.topology)

    def status(self) -> list[PartStatus]:
        """Every part, in the topology's order."""
        running, cut = self.running(), self.cut_links()
        asked = [part for part in self.topology.parts if running[part.name] and not running[part.name][0].is_frozen]
        with ThreadPoolExecutor(PROBES) as pool:
            answers = dict(zip(asked, pool.map(lambda part: is_ready(self.ground, part), asked), strict=True))
        return [self._status(part, running[part.name], answers.get(part, False), cut) for part in self.topology.parts]

    def cut_links(self) -> set[str]:
        """The machines whose link is cut."""
        ports = json.loads(self.ground.run(links_command()))
        return {port["ifname"] for port in ports if port["state"] == DISABLED}

    def is_full(self, machine: Machine) -> bool:
        """Whether nothing can be written to a replica's disk."""
        return os.statvfs(self.ground.inside(data_of(machine))).f_bavail == 0

    def socket(self, node: Machine) -> Path:
        """Where this process reaches a node's containerd."""
        return self.ground.inside(str(containerd_place(node).socket))

    def pull(self, node: Machine, image: str, seconds: float = PULL_S) -> str:
        """Pull on a node as its kubelet does and return the image's id. Raises PullFailed or Unavailable."""
        paths = node_paths(node)
        program = [sys.executable, "-m", "sluice.lab.pulling", str(containerd_place(node).socket), full_name(image)]
        said = self.ground.run([*program, paths.kubelet_credentials, paths.kubelet_plugins], node, seconds)
        outcome = json.loads(said)
        if "error" in outcome:
            raise PullFailed(outcome["error"])
        return str(outcome["image"])

    def run(self, node: Machine, command: Sequence[str]) -> str:
        """Run a program on a node to its end and return its standard output; raises Unavailable."""
        return self.ground.run(command, node)

    def _status(self, part: Part, processes: list[Running], answers: bool, cut: set[str]) -> PartStatus:
        notes = ["link cut"] if part.machine.name in cut else []
        if part.kind == "replica" and self.is_full(part.machine):
            notes.append("disk full")
        if not processes:
            return PartStatus(part.name, "stopped", None, part.address, 0, 0.0, ", ".join(notes))
        first = processes[0]
        state: Condition = "frozen" if first.is_frozen else ("ready" if answers else "no answer")
        resident = sum(one.resident_bytes for one in processes)
        return PartStatus(part.name, state, first.pid, part.address, resident, age_s(first), ", ".join(notes))


def open_laboratory(path: Path) -> Laboratory:
    """The one in a directory. Raises ConfigInvalid where there is none, NotRunning where it has ended.

    Raises Unavailable without root: the kernel does not say then.
    """
    require_root()
    directory = LabDirectory(path)
    state = directory.load()
    init = find_init(directory.path)
    if init is None:
        raise NotRunning(
            f"the laboratory in {directory.path} runs no longer, as after a restart of the machine: sluice lab down "
            "removes what it left"
        )
    return Laboratory(directory, state, plan_topology(state.shape), Ground(directory.path, init))


def full_name(image: str) -> str:
    """An image by the name that the cluster knows it by: without a registry it is the virtual address's."""
    first, slash, _ = image.partition("/")
    return image if slash and ("." in first or ":" in first or first == "localhost") else f"{VIRTUAL}/{image}"

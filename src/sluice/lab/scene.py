"""A laboratory as the story and the tests act on it: publish images, pull and run them, and see who sends what.

Between ``story``, which says what happens, and ``laboratory``, which knows what is there.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice.lab import faults
from sluice.lab.containerd import run_command, snapshotter
from sluice.lab.containerd_config import ContainerdPlace
from sluice.lab.images import Ballast, build_image, find_busybox
from sluice.lab.laboratory import PULL_S, Laboratory, full_name
from sluice.lab.layouts import node_paths
from sluice.lab.parts import PAUSE_IMAGE, containerd_place
from sluice.lab.pushes import HELLO, LabImage, push_image
from sluice.node.haproxy import Balancer
from sluice.node.haproxy_state import ReplicaState

REPLICA, UPSTREAM = "replica", "upstream"


@dataclass(frozen=True, slots=True)
class Published:
    """An image that can be pulled. ``layer`` is the digest of its biggest layer, ``size`` that one's length."""

    reference: str
    digest: str
    layer: str
    size: int


@dataclass(frozen=True, slots=True)
class LabScene:
    """Nodes and replicas by their machines' names."""

    lab: Laboratory

    @property
    def workers(self) -> Sequence[str]:
        """Nodes that do nothing but pull."""
        return [one.name for one in self.lab.topology.nodes if one.role == "worker"]

    @property
    def nodes(self) -> Sequence[str]:
        """Every node, control planes first."""
        return [one.name for one in self.lab.topology.nodes]

    @property
    def replicas(self) -> Sequence[str]:
        """Where replicas run."""
        return [one.name for one in self.lab.topology.control_planes]

    @property
    def hello(self) -> str:
        """An image that says something when it runs."""
        return f"{HELLO.repository}:{HELLO.tag}"

    @property
    def pause(self) -> str:
        """The image that the runtime itself pulls, without credentials, for every pod's sandbox."""
        return PAUSE_IMAGE

    def publish(self, repository: str, size: int, seed: int) -> Published:
        """Put an image with one big layer to where the mode takes images from. Raises Unavailable."""
        layout = self.lab.directory.images / repository.replace("/", "-")
        digest = build_image(layout, find_busybox(), "1", [Ballast(size, seed)])
        layer = max((layout / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
        published = Published(f"{repository}:1", digest, f"sha256:{layer.name}", layer.stat().st_size)
        push_image(self.lab.ground, self.lab.directory, self.lab.topology, LabImage(repository, "1"))
        shutil.rmtree(layout)
        return published

    def pull(self, node: str, image: str, seconds: float = PULL_S) -> str:
        """As the node's kubelet does; the image's id. Raises PullFailed or Unavailable."""
        return self.lab.pull(self.lab.topology.node(node), image, seconds)

    def run(self, node: str, image: str, *command: str) -> str:
        """A container on a node's network; what it printed. Raises Unavailable."""
        machine = self.lab.topology.node(node)
        kind = snapshotter(self.lab.directory.machine(machine))
        container = f"lab-{secrets.token_hex(6)}"
        cgroup = f"/{self.lab.directory.cgroup}/{container}"
        place = containerd_place(machine)
        return self.lab.run(machine, run_command(place, kind, container, full_name(image), *command, cgroup=cgroup))

    @contextlib.contextmanager
    def sandbox(self, node: str) -> Iterator[str]:
        """A pod without containers, on a node's network; its id. The runtime fetches its image, if it does not have
        it. Raises Unavailable."""
        from sluice.lab.cri import Runtime  # noqa: PLC0415 - gRPC is loaded by those who ask a runtime, not by all

        with Runtime(self.place(node).socket) as runtime:
            name = f"lab-{secrets.token_hex(6)}"
            made = runtime.run_sandbox(name, f"/{self.lab.directory.cgroup}")
            try:
                yield made
            finally:
                runtime.remove_sandbox(made)

    def place(self, node: str) -> ContainerdPlace:
        """A node's containerd, as this process reaches its files."""
        place = containerd_place(self.lab.topology.node(node))
        inside = self.lab.ground.inside
        return ContainerdPlace(inside(str(place.directory)), inside(str(place.hosts)), place.sandbox_image)

    def balancer(self, node: str) -> Balancer:
        """A node's balancer, as this process reaches it: what it sees can be asked, it cannot be started."""
        paths = node_paths(self.lab.topology.node(node))
        inside = self.lab.ground.inside
        return Balancer(inside(f"{paths.balancer}/haproxy.cfg"), inside(f"{paths.state}/balancer"))

    def seen(self, node: str) -> Mapping[str, ReplicaState]:
        """Every replica as a node's balancer sees it."""
        return {one.name: one for one in self.balancer(node).state().replicas}

    def streams(self, node: str) -> Mapping[str, int]:
        """How many requests each replica answers for a node's balancer just now."""
        return {name: one.streams for name, one in self.seen(node).items()}

    def logs(self) -> Mapping[str, Path]:
        """Each replica's log."""
        return {name: self.lab.directory.log(f"{name}/{REPLICA}") for name in self.replicas}

    def kill(self, replica: str) -> None:
        """SIGKILL."""
        faults.kill(self.lab, f"{replica}/{REPLICA}")

    def kill_upstream(self) -> None:
        """SIGKILL: connections to it are refused from now on."""
        faults.kill(self.lab, UPSTREAM)

    def heal_upstream(self) -> None:
        """Give it back, and wait until it answers."""
        faults.heal(self.lab, UPSTREAM)

    def heal(self, replica: str) -> None:
        """Give it back, and wait until it answers."""
        faults.heal(self.lab, f"{replica}/{REPLICA}")

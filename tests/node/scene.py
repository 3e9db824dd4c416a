"""A node between real parts: an upstream of another make, two replicas before it, a balancer, and a containerd.

All on loopback. Images are called by the virtual address; the upstream has them under a path of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from integration.foreign import Foreign, foreign_registry

from node.given import node_layout, paths_below
from sluice.cluster.layout import Login, NodeLayout, NodeSecrets
from sluice.lab.containerd import Containerd
from sluice.lab.containerd_config import ContainerdPlace
from sluice.lab.cri import Auth, Runtime
from sluice.lab.images import build_image, find_busybox
from sluice.lab.programs import run_step
from sluice.node.balancer import render_balancer
from sluice.node.containers_conf import render_containers
from sluice.node.files import Files
from sluice.node.haproxy import Balancer
from sluice.node.hosts import render_hosts
from sluice.node.secret_files import client_pem_path, render_secrets
from sluice.pki.durable import write_durably
from sluice.pki.material import client_authority, client_certificate
from sluice.testing.server import SluiceServer, free_port

PREFIX, HUB_PREFIX = "team/proj", "hub"
VIRTUAL = "registry.sluice.internal:5001"
NAME = "demo/app"
PARTS = 5  # index, manifest, config and two layers
LOGGED_S = 20.0
HUB = "mirror.example:5000"
PROGRAMS = ("skopeo", "busybox", "containerd", "ctr", "runc", "docker-registry", "haproxy")
needs_parts = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS) or os.geteuid() != 0, reason="needs root and make setup"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that runs, and the image's digest."""

    directory: Path
    foreign: Foreign
    replicas: list[SluiceServer]
    ports: list[int]
    secrets: NodeSecrets
    containerd: Containerd
    balancer_port: int
    digest: str

    def layout(self, *sources: str, **changes: object) -> NodeLayout:
        """The node's, with these sources and all files below the scene's directory."""
        ca = self.directory / "foreign" / "certs" / "ca.crt"
        authorities = ca.read_text() if ca.exists() else None
        values: dict[str, object] = {
            "mode": "direct" if sources[0] == "upstream" else "proxy",
            "sources": sources,
            "replicas": [{"name": f"cp-{at}", "host": "127.0.0.1", "port": port} for at, port in enumerate(self.ports)],
            "authorities": "".join(one.ca.read_text() for one in self.replicas),
            "upstream": {"address": f"{self.foreign.url}/{PREFIX}", "authorities": authorities},
            "registries": [
                {"name": HUB, "remote": {"address": f"{self.foreign.url}/{HUB_PREFIX}", "authorities": authorities}}
            ],
            "balancer": {"port": self.balancer_port, "metrics_port": free_port()},
            "runtimes": ["containerd", "podman"],
            "paths": paths_below(self.directory / "n"),
        }
        return node_layout(**(values | changes))

    def put(self, layout: NodeLayout) -> NodeLayout:
        """Write a layout's files and have the balancer run where it is a source."""
        write(render_secrets(layout, self.secrets))
        for rendered in (
            render_balancer(layout, client_pem_path(layout, self.secrets)),
            render_containers(layout, self.secrets),
            render_hosts(layout, self.secrets),
        ):
            write(rendered)
        if "balancer" in layout.sources:
            Balancer.of(layout).ensure()
        return layout

    def pull(self, image: str, auth: Auth | None = None, timeout_s: float = 60.0) -> None:
        """Pull by the CRI what containerd does not hold. Raises PullFailed."""
        with Runtime(self.containerd.place.socket) as runtime:
            for held in runtime.images():
                runtime.remove(held.id)
            runtime.pull(image, auth, timeout_s)

    def served(self) -> dict[str, int]:
        """How many manifests and blobs each has given so far, by its own log."""
        foreign = self.directory / "foreign"
        logs = {"upstream": foreign / "data.log" if (foreign / "data.log").exists() else foreign / "log"}
        logs |= {f"replica-{at}": one.log for at, one in enumerate(self.replicas)}
        return {name: _gets(log) for name, log in logs.items()}

    def given_by(self, act: Callable[[], object], *givers: str) -> dict[str, int]:
        """What each gave while ``act`` ran. Logs come late: it is waited until ``givers`` have given a whole image."""
        before = self.served()
        act()
        deadline = time.monotonic() + LOGGED_S
        while True:
            given = {name: count - before[name] for name, count in self.served().items()}
            if sum(given[name] for name in givers) >= PARTS or time.monotonic() > deadline:
                return given
            time.sleep(0.05)


def _gets(log: Path) -> int:
    lines = log.read_text("utf-8", "replace").splitlines()
    return sum(" 200 " in line and "GET" in line and ("/manifests/" in line or "/blobs/" in line) for line in lines)


def write(files: Files) -> None:
    """As an apply does: what others refer to first, each by rename."""
    for path, spec in sorted(files.items(), key=lambda item: not item[1].early):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(Path(path), spec.content, mode=spec.mode)


@contextlib.contextmanager
def scene(guise: str) -> Iterator[Scene]:
    """One with an upstream in one of ``foreign.GUISES``; nothing of it is left at the end."""
    with contextlib.ExitStack() as stack:
        # Socket addresses hold 107 bytes, so the directory has a short name.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sln-")))
        foreign = stack.enter_context(foreign_registry(guise, directory / "foreign"))
        digest = build_image(directory / "image", find_busybox(), "v1")
        for prefix in (PREFIX, HUB_PREFIX):
            copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", *foreign.skopeo]
            run_step([*copy, f"oci:{directory / 'image'}:v1", f"docker://{foreign.host}/{prefix}/{NAME}:v1"])
        now = datetime.now(UTC)
        authority = client_authority(directory, now)
        leaf = client_certificate(authority, "worker-1", now)
        login = {"user": "robot" if guise == "htpasswd" else "reader", "password": "secret"}
        secrets = NodeSecrets(
            certificate=leaf.chain_pem.decode(),
            key=leaf.key_pem.decode(),
            upstream=Login(**login) if guise in {"htpasswd", "token"} else None,
        )
        flags = ["--mode", "proxy", *foreign.flags, "--upstream", f"{foreign.url}/{PREFIX}"]
        if guise == "plain":
            flags += ["--registries", f"{HUB}={foreign.url}/{HUB_PREFIX}"]
        ports = [free_port(), free_port()]
        doors = [["--nodes-listen", f"127.0.0.1:{port}", "--nodes-ca", str(authority.path)] for port in ports]
        replicas = [
            stack.enter_context(SluiceServer(directory / f"replica-{at}", *flags, *door))
            for at, door in enumerate(doors)
        ]
        hosts = Path(paths_below(directory / "n").containerd_hosts)
        containerd = Containerd(ContainerdPlace(directory / "c", hosts, f"{VIRTUAL}/pause:1"))
        stack.callback(containerd.remove)
        containerd.start()
        containerd.wait_ready()
        made = Scene(directory, foreign, replicas, ports, secrets, containerd, free_port(), digest)
        stack.callback(Balancer.of(made.layout("balancer")).stop)
        yield made

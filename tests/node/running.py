"""A node below a directory with its agent as a real process, and the documents that the agent follows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from node.given import node_layout, node_secrets, paths_below
from sluice.cluster.documents import dump_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.cluster.status import NodeStatus
from sluice.node.haproxy import Balancer
from sluice.node.status import read_status
from sluice.testing.server import free_port

WAIT_S = 30.0
CONFIG = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{}"\n'


class Node:
    """``with`` leaves no agent and no balancer. Its replicas are where nothing listens, unless a test says else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.document, self.secrets = root / "layout.yaml", root / "secrets.yaml"
        self.state = root / "var/lib/sluice/node"
        self.port, self.metrics_port = free_port(), free_port()
        self.replicas = [{"name": name, "host": "127.0.0.1", "port": free_port()} for name in ("master-1", "master-2")]
        self.log = root / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        config = root / "etc/containerd/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(CONFIG.format(self.hosts))

    @property
    def hosts(self) -> Path:
        return self.root / "etc/containerd/certs.d"

    @property
    def balancer(self) -> Balancer:
        return Balancer.of(self.layout())

    def layout(self, **changes: object) -> NodeLayout:
        values: dict[str, object] = {
            "paths": paths_below(self.root).model_dump(),
            "balancer": {"port": self.port, "metrics_port": self.metrics_port},
            "replicas": self.replicas,
        }
        return node_layout(**values | changes)

    def want(self, layout: NodeLayout, secrets: NodeSecrets | None = None) -> None:
        """Put both documents there as a careful producer does: whole."""
        for path, document in ((self.secrets, secrets or node_secrets()), (self.document, layout)):
            aside = path.with_suffix(".new")
            aside.write_bytes(dump_document(document))
            aside.rename(path)

    def start(self, state: Path | None = None) -> None:
        """Start the agent, in the root directory; with another name of its state where one is given."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(state), stdout=log, stderr=log, start_new_session=True, cwd=self.root
            )

    def command(self, state: Path | None = None) -> list[str]:
        words = ("--layout", self.document, "--secrets", self.secrets, "--state", state or self.state)
        return [sys.executable, "-m", "sluice", "node", "run", *map(str, words)]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self.process = None
        return code

    def status(self) -> NodeStatus | None:
        return read_status(self.state)

    def wait_for(self, holds: Callable[[NodeStatus], bool], what: str) -> NodeStatus:
        """The first status of which it holds."""
        deadline = time.monotonic() + WAIT_S
        while (status := self.status()) is None or not holds(status):
            assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}; {status}; {self.log.read_text()}"
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return status

    def applied(self, version: int) -> NodeStatus:
        return self.wait_for(lambda status: status.version == version, f"version {version}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.balancer.stop()


def alive(pid: int | None) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    if pid is None:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def kill(pid: int | None) -> None:
    """SIGKILL."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def watches() -> list[int]:
    """How many directories each of this process's inotify instances watches."""
    return [found for found in map(_watches, Path("/proc/self/fdinfo").iterdir()) if found is not None]


def _watches(descriptor: Path) -> int | None:
    try:
        if "inotify" not in os.readlink(f"/proc/self/fd/{descriptor.name}"):
            return None
        return descriptor.read_text().count("inotify wd:")
    except OSError:  # the listing's own, closed by now
        return None

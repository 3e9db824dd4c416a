"""What a kubelet does with the balancer's manifest, for suites that need no more of one: it runs the pod's command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from node.running import alive
from sluice.cluster.layout import NodeLayout
from sluice.node.pods import BALANCER_NAME, render_pods

IMAGE = "registry.sluice.internal:5001/system/haproxy:2.6"
POWERLESS = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--")
"""Root as in the pod: with ``capabilities: drop: [ALL]`` and ``allowPrivilegeEscalation: false``."""
END_S = 10.0


def manifest_path(layout: NodeLayout) -> Path:
    return Path(layout.paths.static_pods) / f"{BALANCER_NAME}.yaml"


def pod_command(manifest: bytes) -> list[str]:
    """What the pod's container runs."""
    pod: dict[str, Any] = yaml.safe_load(manifest)
    (container,) = pod["spec"]["containers"]
    return list(container["command"])


class Pod:
    """The balancer's pod. Its paths are the node's: nothing is mounted. Its directory is made as the kubelet does."""

    def __init__(self, layout: NodeLayout, change: Callable[[list[str]], list[str]] = list) -> None:
        self.rendered = pod_command(render_pods(layout)[str(manifest_path(layout))].content)
        self._command = [*POWERLESS, *change(self.rendered)]
        self._directory = Path(layout.paths.state) / "balancer"
        self._log = Path(layout.paths.state) / "pod.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The container's first process: HAProxy's master."""
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        return [int(one) for one in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        """As the kernel does it to a container: all its processes at once."""
        for pid in [self.pid, *self.workers]:
            os.kill(pid, 9)
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait(END_S)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and alive(self.pid):
            os.kill(self.pid, 18)  # SIGCONT: a test may have frozen it
            self.kill()
        elif self._process is not None:
            self._wait()

"""What tests do to a laboratory while it works: pull all the time, and hand nodes another layout."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.clusters import WAIT_S, wait_until
from sluice.cluster.documents import dump_document, load_document
from sluice.cluster.layout import NodeLayout
from sluice.cluster.status import NodeStatus
from sluice.errors import SluiceError
from sluice.lab.credentials import LAYOUT_NAME
from sluice.lab.cri import Runtime
from sluice.lab.laboratory import full_name
from sluice.lab.layouts import node_paths
from sluice.lab.scene import LabScene
from sluice.node.record import STATUS
from sluice.pki.durable import write_durably

PULL_S = 60.0
REWRITE = """
import sys
from pathlib import Path
from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.node.apply import apply_intent, intend
layout, secrets = load_document(NodeLayout, Path(sys.argv[1])), load_document(NodeSecrets, Path(sys.argv[2]))
turned = layout.model_copy(update={"sources": layout.sources[::-1]})
intents = [intend(turned, secrets), intend(layout, secrets)]
print(sum(bool(apply_intent(intents[at % 2]).steps) for at in range(int(sys.argv[3]))))
"""
"""A program for a node: how many of so many applies changed a file."""


@dataclass(slots=True)
class Pulls:
    """How many pulls have ended well, and what the others said."""

    done: int = 0
    failed: list[str] = field(default_factory=list)

    def await_more(self, count: int) -> None:
        """Return when so many more have ended."""
        least = self.done + count
        wait_until(lambda: self.done >= least or bool(self.failed))


@contextlib.contextmanager
def pulling(scene: LabScene, image: str, *nodes: str) -> Iterator[Pulls]:
    """Pull an image on each node over and over, forgetting it each time, until the block ends."""
    pulls, stop = Pulls(), threading.Event()
    lock = threading.Lock()

    def work(node: str) -> None:
        with Runtime(scene.place(node).socket) as runtime:
            while not stop.is_set():
                try:
                    runtime.remove(runtime.pull(full_name(image), timeout_s=PULL_S))
                    with lock:
                        pulls.done += 1
                except SluiceError as error:
                    pulls.failed.append(f"{node}: {error.message}")

    workers = [threading.Thread(target=work, args=(node,)) for node in nodes]
    for worker in workers:
        worker.start()
    try:
        pulls.await_more(len(nodes))
        yield pulls
    finally:
        stop.set()
        for worker in workers:
            worker.join(WAIT_S)


def node_status(scene: LabScene, node: str) -> dict[str, Any]:
    """What ``sluice node status`` says on a node, whether it is well or not."""
    machine = scene.lab.topology.node(node)
    command = f"{sys.executable} -m sluice node status --state {node_paths(machine).state} --output json || true"
    found: dict[str, Any] = json.loads(scene.lab.run(machine, ["sh", "-c", command]))
    return found


def hand_out(scene: LabScene, change: Callable[[NodeLayout], NodeLayout], *nodes: str) -> None:
    """Give nodes another layout, and return when every agent says that it is applied."""
    wanted: dict[str, int] = {}
    for node in nodes:
        path = scene.lab.directory.machine(scene.lab.topology.node(node)) / LAYOUT_NAME
        layout = load_document(NodeLayout, path)
        wanted[node] = layout.version + 1
        changed = change(layout).model_copy(update={"version": wanted[node]})
        write_durably(path, dump_document(NodeLayout.model_validate(changed.model_dump())))
    deadline = time.monotonic() + WAIT_S
    for node, version in wanted.items():
        machine = scene.lab.topology.node(node)
        path = scene.lab.ground.inside(f"{node_paths(machine).state}/{STATUS}")
        while (found := load_document(NodeStatus, path)).version != version:
            assert time.monotonic() < deadline, f"{node}: {found}"
            time.sleep(0.05)

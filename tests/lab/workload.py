"""What tests do to a laboratory while it works: pull all the time, and hand nodes another layout."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lab.clusters import WAIT_S, wait_until
from sluice.cluster.documents import dump_document, load_document
from sluice.cluster.layout import REPLICA_PORT, NodeLayout, NodeSecrets
from sluice.cluster.status import NodeStatus
from sluice.errors import SluiceError, Unavailable
from sluice.lab.cri import Runtime
from sluice.lab.laboratory import full_name
from sluice.lab.layouts import node_paths
from sluice.lab.provision import LAYOUT_NAME, NODES_CA_NAME, SECRETS_NAME
from sluice.lab.scene import LabScene
from sluice.node.record import STATUS
from sluice.pki.authority import Authority, open_authority
from sluice.pki.durable import PUBLIC_MODE, write_durably
from sluice.pki.leaf import ALWAYS_NAMED, issue_client, issue_server, parse_names

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


class Rotation:
    """New CAs for servers and for nodes in three steps, each done when everybody is known to have taken it."""

    def __init__(self, scene: LabScene) -> None:
        now = datetime.now(UTC)
        self._scene = scene
        pki = scene.lab.directory.pki
        self._old = {name: open_authority(pki / name, "ca", "old", now) for name in ("servers", "nodes")}
        self._new = {name: open_authority(pki / f"{name}-2", "ca", f"new {name}", now) for name in ("servers", "nodes")}
        self._clients = {
            generation: issue_client(authorities["nodes"], "probe", now)
            for generation, authorities in (("old", self._old), ("new", self._new))
        }

    def trust_both(self) -> None:
        """Nodes trust both CAs of servers, replicas both of nodes."""
        self._tell_nodes(self._pem("servers", self._old, self._new))
        self._tell_replicas(self._pem("nodes", self._old, self._new))
        wait_until(lambda: all(self._gets_in(replica, "new", self._old) for replica in self._scene.replicas))

    def sign_anew(self) -> None:
        """Everybody shows a certificate of the new CA."""
        now = datetime.now(UTC)
        for machine in self._scene.lab.topology.control_planes:
            names = parse_names((*ALWAYS_NAMED, machine.address, machine.name))
            leaf = issue_server(self._new["servers"], names, now)
            home = self._scene.lab.directory.machine(machine)
            write_durably(home / "server.key", leaf.key_pem)
            write_durably(home / "server.crt", leaf.chain_pem, mode=PUBLIC_MODE)
        for machine in self._scene.lab.topology.nodes:
            path = self._scene.lab.directory.machine(machine) / SECRETS_NAME
            client = issue_client(self._new["nodes"], machine.name, now)
            shown = {"certificate": client.chain_pem.decode(), "key": client.key_pem.decode()}
            write_durably(path, dump_document(load_document(NodeSecrets, path).model_copy(update=shown)))
        self._tell_nodes(self._pem("servers", self._old, self._new))
        wait_until(lambda: all(self._gets_in(replica, "old", self._new) for replica in self._scene.replicas))

    def forget_old(self) -> None:
        """Only the new CAs are trusted."""
        self._tell_nodes(self._pem("servers", self._new))
        self._tell_replicas(self._pem("nodes", self._new))
        wait_until(lambda: not any(self._gets_in(replica, "old", self._new) for replica in self._scene.replicas))

    def accepted(self) -> dict[str, tuple[bool, bool]]:
        """For each replica, whether it lets in who shows a certificate of the old CA, and of the new one."""
        return {
            replica: (self._gets_in(replica, "old", self._new), self._gets_in(replica, "new", self._new))
            for replica in self._scene.replicas
        }

    def _tell_nodes(self, authorities: str) -> None:
        hand_out(self._scene, lambda layout: layout.model_copy(update={"authorities": authorities}), *self._scene.nodes)

    def _tell_replicas(self, authorities: str) -> None:
        for machine in self._scene.lab.topology.control_planes:
            path = self._scene.lab.directory.machine(machine) / NODES_CA_NAME
            write_durably(path, authorities.encode(), mode=PUBLIC_MODE)

    def _pem(self, name: str, *authorities: dict[str, Authority]) -> str:
        return "".join(one[name].path.read_text() for one in authorities)

    def _gets_in(self, replica: str, shown: str, trusted: dict[str, Authority]) -> bool:
        """Whether a replica's door for nodes opens to a certificate, and shows one that is trusted itself."""
        lab, client = self._scene.lab, self._clients[shown]
        machine = lab.topology.node(self._scene.nodes[-1])
        home = lab.directory.machine(machine)
        (home / "probe.pem").write_bytes(client.chain_pem + client.key_pem)
        (home / "probe-ca.crt").write_text(self._pem("servers", trusted))
        url = f"https://{lab.topology.node(replica).address}:{REPLICA_PORT}/v2/"
        command = ["curl", "-sSf", "-o", "/dev/null", "--cert", f"{machine.home}/probe.pem"]
        try:
            lab.run(machine, [*command, "--cacert", f"{machine.home}/probe-ca.crt", url])
        except Unavailable:
            return False
        return True

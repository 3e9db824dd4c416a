"""A link that drops everything, between a balancer and its replica: in a network namespace of its own."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import Balanced, Body, needs_haproxy, noise
from sluice.node.haproxy import Balancer

pytestmark = [
    needs_haproxy,
    pytest.mark.skipif(any(shutil.which(name) is None for name in ("ip", "iptables")), reason="needs make setup"),
]
BLOB = noise(64 << 20)
NODES = 4000  # checks are 20 s apart
DETECTION_S, SLACK_S = 4.0, 2.0
CLONE_NEWNET = 0x40000000


class Link:
    """A namespace behind a pair of interfaces; ``host`` is this machine's address on it."""

    def __init__(self) -> None:
        token = secrets.token_hex(3)
        number = secrets.randbelow(64 * 256) * 4
        self.name, self.near, self.far = f"sluice-{token}", f"sl{token}a", f"sl{token}b"
        self.host, self.guest = (f"10.233.{number // 256}.{number % 256 + last}" for last in (1, 2))
        self.prefix = ("ip", "netns", "exec", self.name)

    def run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def make(self) -> None:
        self.run("ip", "netns", "add", self.name)
        self.run("ip", "link", "add", self.near, "type", "veth", "peer", "name", self.far, "netns", self.name)
        self.run("ip", "addr", "add", f"{self.host}/30", "dev", self.near)
        self.run("ip", "link", "set", self.near, "up")
        self.run(*self.prefix, "ip", "addr", "add", f"{self.guest}/30", "dev", self.far)
        for device in ("lo", self.far):
            self.run(*self.prefix, "ip", "link", "set", device, "up")

    def remove(self) -> None:
        """The namespace, and the pair of interfaces with it."""
        self.run("ip", "netns", "del", self.name)

    def cut(self) -> None:
        """From now on nothing arrives in the namespace, and nobody is told."""
        self.run(*self.prefix, "iptables", "-A", "INPUT", "-i", self.far, "-j", "DROP")

    def get(self, port: int, path: str) -> Body:
        """A request from inside; a thread is in a namespace of its own."""
        found: list[Body] = []

        def ask() -> None:
            descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            assert ctypes.CDLL(None).setns(descriptor, CLONE_NEWNET) == 0
            os.close(descriptor)
            found.append(Body(port, path))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return found[0]


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    try:
        link.make()
        yield link
    finally:
        link.remove()


def test_link_that_drops_everything(link: Link, tmp_path: Path) -> None:
    """On a cluster where checks are 20 s apart, a stream over a link that is cut still ends short, by FIN, in time."""
    scene = Balanced(tmp_path)
    for replica in scene.replicas.values():
        replica.server.flags = [flag.replace("127.0.0.1:", f"{link.host}:") for flag in replica.server.flags]
    scene.balancer = Balancer(scene.balancer.config, scene.balancer.directory, link.prefix)
    with scene:
        (digest,) = {replica.push("up/a", BLOB) for replica in scene.replicas.values()}
        replicas = [{"name": one.name, "host": link.host, "port": one.nodes_port} for one in scene.replicas.values()]
        ports = {"port": scene.port, "metrics_port": scene.metrics_port}
        scene.apply(scene.layout(replicas=replicas, balancer={**ports, "nodes": NODES}))
        with link.get(scene.port, f"/v2/up/a/blobs/{digest}") as body:
            body.read(1 << 20)
            link.cut()
            began = time.monotonic()
            short = body.read()
            took_s = time.monotonic() - began
        assert (False, True) == (body.reset, body.ended)
        assert 1 << 20 <= len(short) < len(BLOB)
        assert took_s < DETECTION_S + SLACK_S

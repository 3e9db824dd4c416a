"""Three real replicas behind a real HAProxy, for suites that watch what passes through it."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest

from node.given import node_layout
from sluice.cluster.layout import NodeLayout
from sluice.node.balancer import render_balancer
from sluice.node.haproxy import Balancer, Done
from sluice.node.haproxy_state import ReplicaState
from sluice.pki.material import client_authority, client_certificate
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer, free_port

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None or os.geteuid() != 0, reason="needs root, which gives up its rights, and make setup"
)
WAIT_S = 30.0
NAMES = ("master-1", "master-2", "master-3")
READ_BYTES = 1 << 16


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Return once it holds; fails after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.02)


class Replica:
    """A server with a listener for nodes. ``client`` speaks to its other one, which anybody on this machine may."""

    def __init__(self, name: str, root: Path, *flags: str) -> None:
        self.name = name
        self.nodes_port = free_port()
        listen = ("--nodes-listen", f"127.0.0.1:{self.nodes_port}", "--nodes-ca", str(root / "pki" / "client-ca.crt"))
        self.server = SluiceServer(root / name, *listen, *flags)

    def push(self, repository: str, blob: bytes) -> str:
        """A blob; its digest."""
        with contextlib.closing(RegistryClient(self.server)) as client:
            return client.push_blob(repository, blob)


class Balanced:
    """``replicas`` by name, ``balancer`` before them on ``port``; ``pem`` is the node's certificate and key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port, self.metrics_port = free_port(), free_port()
        (root / "pki").mkdir()
        (root / "etc").mkdir()
        self.pem = self.certificate(root / "pki")
        self.replicas = {name: Replica(name, root) for name in NAMES}
        self.balancer = Balancer(root / "etc" / "haproxy.cfg", root / "run")

    @staticmethod
    def certificate(folder: Path) -> Path:
        """A node's certificate and key in one file, of the authority that the folder has or gets."""
        now = datetime.now(UTC)
        leaf = client_certificate(client_authority(folder, now), "worker-1", now)
        pem = folder / "client.pem"
        pem.write_bytes(leaf.chain_pem + leaf.key_pem)
        return pem

    def layout(self, *names: str, **changes: object) -> NodeLayout:
        """With these replicas, or all; by default one node, and the CA of every replica."""
        chosen = [self.replicas[name] for name in names or NAMES]
        values: dict[str, object] = {
            "replicas": [{"name": one.name, "host": "127.0.0.1", "port": one.nodes_port} for one in chosen],
            "authorities": "".join(one.server.ca.read_text() for one in self.replicas.values()),
            "balancer": {"port": self.port, "metrics_port": self.metrics_port},
            "paths": {"balancer": str(self.root / "etc"), "state": str(self.root)},
        }
        return node_layout(**values | changes)

    def apply(self, layout: NodeLayout, pem: Path | None = None) -> Done:
        """Write the layout's files and have HAProxy run on them."""
        for path, file in render_balancer(layout, str(pem or self.pem)).items():
            Path(path).write_bytes(file.content)
        return self.balancer.ensure()

    def seen(self) -> dict[str, ReplicaState]:
        """The replicas as the balancer sees them."""
        return {one.name: one for one in self.balancer.state().replicas}

    def wait_for(self, **up: bool) -> None:
        """Until the balancer sees these replicas so (``master_1=False``); those that have been checked only."""
        wanted = {name.replace("_", "-"): value for name, value in up.items()}
        wait_until(lambda: wanted.items() <= self._checked().items(), f"{wanted}")

    def _checked(self) -> dict[str, bool]:
        return {name: one.up for name, one in self.seen().items() if not one.reason.startswith("Init")}

    def busy(self) -> str:
        """The one replica that answers something now."""
        wait_until(lambda: any(one.streams for one in self.seen().values()), "a stream")
        (name,) = (name for name, one in self.seen().items() if one.streams)
        return name

    def get(self, path: str, *headers: str) -> Body:
        """GET through the balancer; its body is to be read."""
        return Body(self.port, path, *headers)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for replica in self.replicas.values():
                stack.enter_context(replica.server)
            stack.callback(self.balancer.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Body:
    """A response on a connection of its own; ``status`` is 0 where none came, ``reset`` whether RST ended it."""

    def __init__(self, port: int, path: str, *headers: str, receive_bytes: int = 1 << 17) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(WAIT_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)  # so that little is on its way
        self._socket.connect(("127.0.0.1", port))
        lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, "", "")
        self._socket.sendall("\r\n".join(lines).encode())
        self.reset = False
        head = b""
        self.ended = False
        while b"\r\n\r\n" not in head and not self.ended:
            head += self._receive()
        raw, _, self.data = head.partition(b"\r\n\r\n")
        first, *rest = raw.decode().split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(READ_BYTES)
        except ConnectionResetError:
            self.reset = True
            data = b""
        self.ended = not data
        return data

    def read(self, size: int | None = None) -> bytes:
        """On to ``size`` bytes in all, or to the body's end or the connection's; all of it so far."""
        length = int(self.headers.get("content-length", 1 << 62))
        parts, have = [self.data], len(self.data)
        while have < (length if size is None else size):
            if not (data := self._receive()):
                break
            parts.append(data)
            have += len(data)
        self.data = b"".join(parts)
        return self.data

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compression shortens."""
    return random.Random(seed).randbytes(size)


@contextlib.contextmanager
def balanced(root: Path) -> Iterator[Balanced]:
    """Up, with every replica seen."""
    with Balanced(root) as scene:
        scene.apply(scene.layout())
        scene.wait_for(master_1=True, master_2=True, master_3=True)
        yield scene

"""The place of one run: a directory on the repository's disk, the certificate, the clients and the servers.

The directory is not on tmpfs, so that durability costs what it costs, and is gone when the run ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Clients
from bench.peers import NGINX, REGISTRY, SLUICE, Peer, start_nginx, start_registry, start_sluice
from bench.tls import Identity, make_identity

ROOT = Path(__file__).parent.parent
_STARTS: dict[str, Callable[[Path, Identity], Peer]] = {
    SLUICE: start_sluice,
    REGISTRY: start_registry,
    NGINX: start_nginx,
}


@dataclass(frozen=True)
class Scale:
    """How much work a run does. ``quick`` is for trying the harness; its figures mean little."""

    rounds: int
    quick: bool = False

    @property
    def wrk_s(self) -> int:
        """Seconds of one manifest round."""
        return 1 if self.quick else 5

    @property
    def shrink(self) -> int:
        """What sizes and counts are divided by."""
        return 16 if self.quick else 1


@dataclass(frozen=True)
class Site:
    """Everything a row needs. ``servers`` holds those that run, by name."""

    directory: Path
    identity: Identity
    clients: Clients
    scale: Scale
    servers: dict[str, Peer]

    def peers(self, *names: str) -> list[Peer]:
        """The running servers among ``names``, in that order."""
        return [self.servers[name] for name in names if name in self.servers]

    def scratch(self, name: str) -> Path:
        """A path for a row's own files; nothing is there yet."""
        return self.directory / name

    def discard(self, name: str) -> None:
        """Remove what lies at ``scratch(name)``, of a server that has ended."""
        shutil.rmtree(self.scratch(name))


@contextmanager
def open_site(scale: Scale, names: frozenset[str]) -> Iterator[Site]:
    """Start the servers called ``names``; on leaving, end them and remove everything."""
    parent = ROOT / ".cache"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as temporary, ExitStack() as running:
        directory = Path(temporary)
        identity = make_identity(directory)
        servers: dict[str, Peer] = {}
        for name, start in _STARTS.items():
            if name in names:
                servers[name] = start(directory / name.lower(), identity)
                running.callback(servers[name].process.stop)
        yield Site(directory, identity, Clients(identity), scale, servers)


def settle() -> None:
    """Have the disk finish what earlier work left behind, so that a push pays for its own bytes only."""
    os.sync()

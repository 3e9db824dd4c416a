"""A network namespace of a test's own, and a registry in it: loopback only, gone when the test ends."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest

from sluice.errors import SluiceError
from sluice.lab.containerd import Containerd
from sluice.lab.containerd_config import ContainerdPlace
from sluice.lab.ground import require_means
from sluice.lab.images import Destination

PROGRAMS = ("skopeo", "busybox", "containerd", "ctr", "runc", "docker-registry", "ip", "nsenter")
WAIT_S = 20.0
NAME = "registry.sluice.internal:5001"
REGISTRY = "127.0.0.1:5000"
USER, PASSWORD = "robot", "secret"


def lacks_means() -> bool:
    """Whether this machine, or who we are on it, cannot have namespaces and run what goes into them."""
    with contextlib.suppress(SluiceError):
        require_means()
        return any(shutil.which(name) is None for name in PROGRAMS)
    return True


needs_lab = pytest.mark.skipif(lacks_means(), reason="needs root, CAP_SYS_ADMIN and make setup")


def mounts_of(directory: Path) -> list[str]:
    """Mounts in a directory or made of what is in it, as this process sees them."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(directory) in line]


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(directory).encode() in (words := (entry / "cmdline").read_bytes()):
                found.append(words.replace(b"\0", b" ").decode())
    return found


@contextlib.contextmanager
def network() -> Iterator[tuple[str, ...]]:
    """A namespace with its loopback up; the prefix that runs a command in it."""
    name = f"sluice-t-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ("nsenter", f"--net=/run/netns/{name}")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@dataclass(frozen=True, slots=True)
class Site:
    """A registry in a namespace, and a directory for its runtime. Images are pulled as ``NAME/…``."""

    prefix: tuple[str, ...]
    registry: str
    directory: Path

    def destination(self, repository: str) -> Destination:
        """Where skopeo pushes to."""
        return Destination(f"{self.registry}/{repository}", user=USER, password=PASSWORD, prefix=self.prefix)

    def containerd(self, name: str) -> Containerd:
        """A containerd that finds ``NAME`` at the registry; not started."""
        place = ContainerdPlace(self.directory / name, self.directory / "certs.d", f"{NAME}/pause:1")
        folder = place.hosts / NAME
        folder.mkdir(parents=True, exist_ok=True)
        url = f"http://{self.registry}"
        (folder / "hosts.toml").write_text(f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n')
        return Containerd(place, self.prefix)


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Debian's registry, which wants a password, in a namespace; the directory has a short name, for sockets."""
    with network() as prefix, tempfile.TemporaryDirectory(prefix="slt-") as made:
        directory = Path(made)
        with _registry(prefix, directory):
            yield Site(prefix, REGISTRY, directory)


@contextlib.contextmanager
def _registry(prefix: tuple[str, ...], directory: Path) -> Iterator[None]:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, b"2a"))
    (directory / "htpasswd").write_bytes(USER.encode() + b":" + hashed + b"\n")
    document = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": REGISTRY},
        "auth": {"htpasswd": {"realm": "here", "path": str(directory / "htpasswd")}},
    }
    (directory / "registry.yml").write_text(json.dumps(document))
    with (directory / "registry.log").open("wb") as log:
        command = [*prefix, "docker-registry", "serve", str(directory / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        ask = [*prefix, "curl", "-s", "-o", "/dev/null", f"http://{REGISTRY}/v2/"]
        while subprocess.run(ask, check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()

"""A containerd of the demo's own: unpatched, with its data, state and socket in a directory that goes with it.

It is told where the images are in the one way that stock containerd knows: a ``hosts.toml`` that sends a registry name
to an address and says which CA to trust. The machine's own containerd, if there is one, notices nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sluice.cli.demo_children import Child
from sluice.errors import Unavailable
from sluice.lab.programs import run_step

NAMESPACE = "sluice-demo"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
START_S = 20.0
"""How long containerd may take to answer after its start, in seconds."""
# Kubernetes' plugin would want a network; a metrics or debug socket nobody.
CONFIGURATION = """version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.sock.ttrpc"
"""
HOSTS = """server = "{url}"
[host."{url}"]
  capabilities = ["pull", "resolve"]
  ca = "{ca}"
"""


class Containerd:
    """A running containerd whose ``ctr`` knows where ``registry`` (``host:port``) is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ctr = ["ctr", "--address", str(directory / "c.sock"), "--namespace", NAMESPACE]
        self._snapshotter = _snapshotter(directory)

    def redirect(self, registry: str, url: str, ca: Path) -> None:
        """Send pulls of ``registry/…`` to ``url``, trusting ``ca``."""
        folder = self._directory / "hosts" / registry
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(HOSTS.format(url=url, ca=ca.resolve()), encoding="utf-8")

    def pull(self, image: str) -> None:
        """Fetch and unpack an image."""
        hosts = str(self._directory / "hosts")
        run_step([*self._ctr, "images", "pull", "--hosts-dir", hosts, "--snapshotter", self._snapshotter, image])

    def run(self, image: str) -> str:
        """Run the image's own command in a container; returns what it printed."""
        container = f"demo-{os.getpid()}"
        try:
            return run_step([*self._ctr, "run", "--rm", "--snapshotter", self._snapshotter, image, container])
        except BaseException:
            subprocess.run([*self._ctr, "tasks", "rm", "--force", container], capture_output=True, check=False)
            raise

    def wait(self, child: Child) -> None:
        """Return once containerd answers; raises Unavailable."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            child.require_running()
            with contextlib.suppress(Unavailable):
                run_step([*self._ctr, "version"], 5.0)
                return
            time.sleep(0.1)
        raise Unavailable(f"containerd did not answer within {START_S:.0f} s: see {child.output}")


@contextlib.contextmanager
def private_containerd(output: Path) -> Iterator[Containerd]:
    """Start one and, whatever happens, leave nothing of it behind: no process, no mount, no file."""
    # Socket addresses hold 107 bytes, so the directory has a short name.
    directory = Path(tempfile.mkdtemp(prefix="sluice-"))
    try:
        configuration = directory / "config.toml"
        configuration.write_text(CONFIGURATION.format(directory=directory), encoding="utf-8")
        with Child("containerd", ["containerd", "--config", str(configuration)], output) as child:
            containerd = Containerd(directory)
            containerd.wait(child)
            try:
                yield containerd
            finally:
                # An impatient second Ctrl-C waits until everything is gone.
                signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        _end_shims(directory)
        _unmount(directory)
        shutil.rmtree(directory, ignore_errors=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _snapshotter(directory: Path) -> str:
    """Choose overlayfs, or plain copies where the directory is itself on an overlay, which cannot hold another."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False).stdout
    return "native" if "overlay" in kind else "overlayfs"


def _end_shims(directory: Path) -> None:
    """End what an interrupted ``ctr run`` left: processes whose command line names our directory."""
    marker = os.fsencode(directory)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def _unmount(directory: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)

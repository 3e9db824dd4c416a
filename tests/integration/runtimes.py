"""A containerd with nothing in it, told by ``hosts.toml`` that some names are found at one server."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sluice.lab.containerd import Containerd
from sluice.lab.containerd_config import ContainerdPlace
from sluice.lab.cri import pull
from sluice.testing.server import SluiceServer

HOSTS = """server = "{url}"
[host."{url}"]
  capabilities = ["pull", "resolve"]
  ca = "{ca}"
"""


@contextlib.contextmanager
def containerd_before(server: SluiceServer, *names: str) -> Iterator[Containerd]:
    """Start one that finds the registries ``names`` at ``server``; nothing of it is left at the end."""
    # Socket addresses hold 107 bytes, so the directory has a short name.
    with tempfile.TemporaryDirectory(prefix="sluice-") as directory:
        place = ContainerdPlace(Path(directory, "n"), Path(directory, "certs.d"), f"{names[0]}/pause:1")
        for name in names:
            folder = place.hosts / name
            folder.mkdir(parents=True)
            (folder / "hosts.toml").write_text(HOSTS.format(url=server.url, ca=server.ca.resolve()), encoding="utf-8")
        containerd = Containerd(place)
        try:
            containerd.start()
            containerd.wait_ready()
            yield containerd
        finally:
            containerd.remove()


def pull_and_run(containerd: Containerd, image: str) -> str:
    """Pull as a kubelet does, run the image's own command, and return what it printed."""
    pull(containerd.place.socket, image)
    return containerd.run(image)

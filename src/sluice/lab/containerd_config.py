"""The ``config.toml`` of a containerd of our own, for whichever version is installed. Pure but for asking the version.

Every path lies in one directory, so that a machine can run many and its own containerd notices none of them. 1.x and
2.x split the same settings over different plugins (containerd ``docs/cri/config.md`` of each).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.programs import run_step

SOCKET_LENGTH_MAX = 107
"""sockaddr_un of unix(7), in bytes, without the closing zero."""
_VERSION = re.compile(r"\sv?(\d+)\.(\d+)\.\d+")
# Their kernel modules or devices are not there, and looking for them costs a start time and log lines.
_UNUSED = ("aufs", "btrfs", "devmapper", "zfs", "blockfile", "erofs")

Table = dict[str, object]


@dataclass(frozen=True, slots=True)
class ContainerdPlace:
    """Where everything of one containerd is. ``hosts`` is the directory with a folder for each registry."""

    directory: Path
    hosts: Path
    sandbox_image: str

    def __post_init__(self) -> None:
        if len(bytes(self.ttrpc)) > SOCKET_LENGTH_MAX:
            raise ConfigInvalid(
                f"directory {self.directory} is too long for a socket in it ({SOCKET_LENGTH_MAX} bytes): choose a "
                "shorter one"
            )

    @property
    def socket(self) -> Path:
        """Where containerd serves gRPC: ``ctr`` and the CRI."""
        return self.directory / "c.sock"

    @property
    def ttrpc(self) -> Path:
        """Where it serves its shims."""
        return self.directory / "c.sock.ttrpc"

    @property
    def config(self) -> Path:
        """Its ``config.toml``."""
        return self.directory / "config.toml"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.directory / "containerd.log"

    @property
    def state(self) -> Path:
        """What lives as long as its containers."""
        return self.directory / "state"

    @property
    def runc(self) -> Path:
        """Where runc keeps what it knows of the containers."""
        return self.directory / "runc"


def installed_version(program: str = "containerd") -> tuple[int, int]:
    """``(major, minor)`` of the containerd that would start. Raises Unavailable."""
    said = run_step([program, "--version"], 10.0)
    found = _VERSION.search(said)
    if found is None:
        raise Unavailable(f"{program} --version says {said.strip()!r}, which names no version")
    return int(found[1]), int(found[2])


def render_config(place: ContainerdPlace, version: tuple[int, int], snapshotter: str) -> str:
    """The whole ``config.toml`` as text."""
    plugins = _plugins_2(place, snapshotter) if version >= (2, 0) else _plugins_1(place, snapshotter)
    if version >= (1, 7):
        # Its socket has one place on the whole machine, and two daemons cannot both have it.
        plugins["io.containerd.nri.v1.nri"] = {"disable": True}
    document: Table = {
        "version": 3 if version >= (2, 0) else 2,
        "root": str(place.directory / "root"),
        "state": str(place.state),
        "disabled_plugins": [f"io.containerd.snapshotter.v1.{name}" for name in _UNUSED],
        "grpc": {"address": str(place.socket)},
        "ttrpc": {"address": str(place.ttrpc)},
        "plugins": {"io.containerd.internal.v1.opt": {"path": str(place.directory / "opt")}, **plugins},
    }
    return tomli_w.dumps(document)


def _plugins_1(place: ContainerdPlace, snapshotter: str) -> Table:
    cri: Table = {
        "sandbox_image": place.sandbox_image,
        "registry": {"config_path": str(place.hosts)},
        **_runtime(place, {"snapshotter": snapshotter}),
        **_streams(),
    }
    return {"io.containerd.grpc.v1.cri": cri}


def _plugins_2(place: ContainerdPlace, snapshotter: str) -> Table:
    images: Table = {
        "snapshotter": snapshotter,
        "pinned_images": {"sandbox": place.sandbox_image},
        "registry": {"config_path": str(place.hosts)},
    }
    return {
        "io.containerd.cri.v1.images": images,
        "io.containerd.cri.v1.runtime": _runtime(place, {}),
        "io.containerd.grpc.v1.cri": _streams(),
    }


def _runtime(place: ContainerdPlace, containerd: Table) -> Table:
    network = {"bin_dir": str(place.directory / "cni/bin"), "conf_dir": str(place.directory / "cni/net.d")}
    # Where ``ctr`` has it, too: what of a pod is left can be found and ended there.
    runc = {"runtime_type": "io.containerd.runc.v2", "options": {"Root": str(place.runc)}}
    return {
        "cni": network,
        # Without CAP_SYS_RESOURCE a pod's score cannot be lowered below the daemon's own.
        "restrict_oom_score_adj": True,
        "containerd": {**containerd, "runtimes": {"runc": runc}},
    }


def _streams() -> Table:
    # The kernel chooses the port: the network namespace may be shared.
    return {"stream_server_address": "127.0.0.1", "stream_server_port": "0"}

"""One node's containerd: started in the node's network, and gone without a trace when it is to be.

It runs in a mount namespace of its own, so that whatever it mounts ends with its last process, even after SIGKILL. The
caller's ``prefix`` takes it into the node's network: ``nsenter --net=…``, not ``ip netns exec``, which puts a fresh
``/sys`` without cgroups over the machine's, and runc cannot work then. Whoever stops it need not have started it: its
processes are known by the paths in their command lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sluice.errors import Unavailable
from sluice.lab.containerd_config import ContainerdPlace, installed_version, render_config
from sluice.lab.programs import run_step

START_S = 20.0
"""How long it may take to answer after its start, in seconds."""
STOP_S = 10.0
"""How long it may take to end after SIGTERM, in seconds, before SIGKILL."""
POLL_S = 0.02
NAMESPACE = "k8s.io"
"""Where the CRI keeps its images (containerd ``pkg/cri/constants``)."""
LOG_TAIL_LINES = 3
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "slave")
_TASKS = "io.containerd.runtime.v2.task"
_QUIET = re.compile(r'level=(?:info|debug)|"level":"(?:info|debug)"')


class Containerd:
    """The containerd at ``place``. ``prefix`` is a command that runs another in the node's network."""

    def __init__(self, place: ContainerdPlace, prefix: Sequence[str] = (), program: str = "containerd") -> None:
        self.place = place
        self._prefix = tuple(prefix)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The running daemon, whoever started it."""
        return next(_with_argument(str(self.place.config)), None)

    def start(self) -> None:
        """Write the configuration and start; does not wait. Does nothing where it runs already."""
        if self.pid is not None:
            return
        place = self.place
        place.directory.mkdir(parents=True, exist_ok=True)
        configuration = render_config(place, installed_version(self._program), snapshotter(place.directory))
        place.config.write_text(configuration, encoding="utf-8")
        with place.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *_OWN_MOUNTS, self._program, "--config", str(place.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Where containerd mounts a layer while it unpacks it.
                env={**os.environ, "TMPDIR": str(place.directory)},
            )

    def wait_ready(self, seconds: float = START_S) -> None:
        """Return once its CRI answers; raises Unavailable with its last words."""
        from sluice.lab.cri import Runtime  # noqa: PLC0415 - gRPC is loaded by those who ask a runtime, not by all

        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise Unavailable(f"containerd ended by itself: {self._last_words()} ({self.place.log})")
            if self.place.socket.exists():
                with contextlib.suppress(Unavailable), Runtime(self.place.socket) as runtime:
                    runtime.version()
                    return
            time.sleep(POLL_S)
        raise Unavailable(f"containerd did not answer within {seconds:.0f} s: {self._last_words()} ({self.place.log})")

    def run(self, image: str, *command: str) -> str:
        """Run a container of an image that is here, in the node's network; returns what it printed."""
        container = f"sluice-{secrets.token_hex(6)}"
        try:
            return run_step(run_command(self.place, snapshotter(self.place.directory), container, image, *command))
        except BaseException:
            ended = ctr_command(self.place, "tasks", "rm", "--force", container)
            subprocess.run(ended, capture_output=True, check=False)
            raise

    def kill(self) -> None:
        """SIGKILL, as a crash: its containers and what it has on disk stay."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self._await_gone(STOP_S)

    def stop(self) -> None:
        """End containers, daemon and shims, whatever state they are in; the directory's files stay."""
        place = self.place
        _end_containers(place)
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)  # It may be frozen.
        self._await_gone(STOP_S)
        self.kill()
        for shim in _with_argument(str(place.socket)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(shim, signal.SIGKILL)
        for bundle in _bundles(place):
            _remove_shim_socket(bundle)

    def remove(self) -> None:
        """``stop``, then remove the directory."""
        self.stop()
        shutil.rmtree(self.place.directory, ignore_errors=True)

    def _await_gone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if self._process is not None and self.pid is None:
            self._process.wait(seconds)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.place.log.read_text("utf-8", "replace").splitlines()
            told = [line for line in lines if _QUIET.search(line) is None][-LOG_TAIL_LINES:]
            if told:
                return " / ".join(told)
        return "without a word"


def ctr_command(place: ContainerdPlace, *arguments: str) -> list[str]:
    """The command that asks a containerd by ``ctr``, in the namespace of the CRI."""
    return ["ctr", "--address", str(place.socket), "--namespace", NAMESPACE, *arguments]


def run_command(
    place: ContainerdPlace, kind: str, container: str, image: str, *command: str, cgroup: str | None = None
) -> list[str]:
    """The command that runs a container in the node's network to its end, and takes it away.

    ``kind`` is the snapshotter that pulls unpack with; ``cgroup`` the control group, else one of containerd's naming.
    """
    run = ctr_command(place, "run", "--rm", "--net-host", "--snapshotter", kind)
    run += ["--runc-root", str(place.runc), "--fifo-dir", str(place.directory / "fifo")]
    if cgroup is not None:
        run += ["--cgroup", cgroup]
    return [*run, image, container, *command]


def snapshotter(directory: Path) -> str:
    """Choose overlayfs, or plain copies where the directory is itself on an overlay, which cannot hold another."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return "native" if "overlay" in run_step(["stat", "-f", "-c", "%T", str(existing)]) else "overlayfs"


def _with_argument(argument: str) -> Iterator[int]:
    """Living processes that have this argument in their command line."""
    wanted = os.fsencode(argument)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # A zombie's command line is empty.
            with contextlib.suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _bundles(place: ContainerdPlace) -> list[Path]:
    """A directory for each container that has not been tidied away."""
    return sorted((place.state / _TASKS).glob("*/*"))


def _end_containers(place: ContainerdPlace) -> None:
    # runc knows every process of a container by its cgroup, and removes that, too. It needs neither daemon nor shim.
    for state in sorted(place.runc.glob("*/*")):
        command = ["runc", "--root", str(state.parent), "delete", "--force", state.name]
        subprocess.run(command, capture_output=True, check=False, timeout=STOP_S)


def _remove_shim_socket(bundle: Path) -> None:
    # Shims listen in /run/containerd/s, wherever the daemon's state is; one that was killed leaves its socket there.
    # 1.x writes its address plainly, 2.x among others as JSON.
    for name in ("address", "bootstrap.json"):
        with contextlib.suppress(OSError, ValueError, LookupError):
            said = (bundle / name).read_text(encoding="utf-8")
            address = said if name == "address" else str(json.loads(said)["address"])
            Path(address.removeprefix("unix://")).unlink()

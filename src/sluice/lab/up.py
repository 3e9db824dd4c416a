"""Bringing a laboratory up: ground, files, parts, images; all or nothing.

Everything is started at once and then waited for, because most of the time each is busy reading itself from disk. Until
the last part is ready the laboratory lives only as long as the call: an error, Ctrl-C or our death takes all of it
away.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn, get_args

from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.credentials import SERVERS_CA_NAME
from sluice.lab.down import remove_cgroups, take_down
from sluice.lab.ground import Beginning, Ground, find_init, require_means
from sluice.lab.laboratory import VIRTUAL
from sluice.lab.mounts import ground_commands, machine_commands, node_commands
from sluice.lab.network import network_commands
from sluice.lab.parts import WAITED_S, install_plugin, is_ready, prepare_containerd, start_part
from sluice.lab.processes import running_parts
from sluice.lab.provision import provision
from sluice.lab.pushes import build_images, push_to_replica, push_to_upstream
from sluice.lab.state import LabDirectory
from sluice.lab.topology import LabShape, Part, Topology, UpstreamKind, plan_topology
from sluice.wire.address import UpstreamAddress, parse_upstream

POLL_S = 0.05
PUSH_S = 60.0
"""How long images may take to be pushed after everything runs, in seconds."""
OUTSIDE_S = 10.0
"""How long a registry outside may take to accept a connection, in seconds."""
LOG_LINES = 3
GROUND, IMAGES = "network", "images"
"""What is made beside the parts, by the names that ``tell`` gives it."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Tell = Callable[[str, str], None]
"""Takes a part's name and what has become of it: ``starting`` or ``ready``."""


def raise_lab(path: Path, shape: LabShape, tell: Tell) -> Topology:
    """Bring it up and return when every part answers. Raises ConfigInvalid or Unavailable, and has left nothing."""
    require_means()
    directory, topology = LabDirectory(path), plan_topology(shape)
    with directory.locked(), _ended_once():
        if find_init(directory.path) is not None:
            raise ConfigInvalid(f"a laboratory runs in {directory.path} already: sluice lab down ends it")
        remove_cgroups(directory.cgroup)
        directory.clear()
        try:
            directory.create(shape, time.time())
            with Beginning(directory.path) as beginning:
                _Raising(beginning.ground, directory, topology, tell).run()
                beginning.stay()
        except BaseException:
            take_down(directory)
            raise
    return topology


@dataclass
class _Raising:
    """What is at hand while a laboratory comes up."""

    ground: Ground
    directory: LabDirectory
    topology: Topology
    tell: Tell
    pushes: list[Future[None]] = field(default_factory=list)

    def run(self) -> None:
        for name in (GROUND, IMAGES, *(part.name for part in self.topology.parts)):
            self.tell(name, "starting")
        pool = ThreadPoolExecutor(2, "push")
        try:
            built = pool.submit(build_images, self.directory)
            self._lay_ground()
            self.tell(GROUND, "ready")
            for part in self.topology.parts:
                start_part(self.ground, self.directory, self.topology, part)
            built.result()
            self._await_parts(pool)
            for push in self.pushes:
                push.result(PUSH_S)
            self._require_alive([], 0.0)
            self.tell(IMAGES, "ready")
        finally:
            # A push that still runs ends with the ground.
            pool.shutdown(wait=False, cancel_futures=True)

    def _lay_ground(self) -> None:
        ground, topology = self.ground, self.topology
        provision(self.directory, topology)
        if topology.shape.outside is not None:
            _require_reachable(parse_upstream(topology.shape.outside.address))
        for node in topology.nodes:
            prepare_containerd(self.directory, node)
            install_plugin(self.directory, node)
        machines = str(self.directory.machines)
        ground.run_all(ground_commands())
        ground.run_all(command for one in topology.machines for command in machine_commands(topology, one, machines))
        ground.run_all(network_commands(topology))
        ground.run_all(
            command
            for node in topology.nodes
            for command in node_commands(topology, node, VIRTUAL, f"{node.home}/{SERVERS_CA_NAME}")
        )

    def _await_parts(self, pool: ThreadPoolExecutor) -> None:
        waiting = list(self.topology.parts)
        began = time.monotonic()
        while waiting:
            for part in list(waiting):
                if is_ready(self.ground, part):
                    waiting.remove(part)
                    self.tell(part.name, "ready")
                    self._push(pool, part)
            self._require_alive(waiting, time.monotonic() - began)
            time.sleep(POLL_S)

    def _push(self, pool: ThreadPoolExecutor, part: Part) -> None:
        if part.kind == "upstream":
            self.pushes.append(pool.submit(push_to_upstream, self.ground, self.directory, self.topology))
        if part.kind == "replica" and self.topology.shape.mode == "local":
            self.pushes.append(pool.submit(push_to_replica, self.ground, self.directory, part.machine))

    def _require_alive(self, waiting: list[Part], waited_s: float) -> None:
        if find_init(self.directory.path) is None:
            raise Unavailable("the laboratory was ended while it came up")
        running = running_parts(self.ground, self.topology)
        for part in self.topology.parts:
            # A balancer is started by its agent, in its own time.
            is_late = part in waiting and waited_s > WAITED_S[part.kind]
            if not running[part.name] and (part.kind != "balancer" or part not in waiting):
                raise Unavailable(f"{part.name} ended by itself: {self._last_words(part)}")
            if is_late:
                limit = f"{WAITED_S[part.kind]:.0f} s"
                raise Unavailable(f"{part.name} did not become ready within {limit}: {self._last_words(part)}")

    def _last_words(self, part: Part) -> str:
        with contextlib.suppress(OSError):
            lines = self.directory.log(part.name).read_text("utf-8", "replace").strip().splitlines()
            if lines:
                return " / ".join(lines[-LOG_LINES:])
        return "it said nothing"


def _require_reachable(outside: UpstreamAddress) -> None:
    """Or a laboratory comes up in which no image can be pulled. Raises ConfigInvalid."""
    try:
        socket.create_connection((outside.host, outside.port), OUTSIDE_S).close()
    except OSError as error:
        kinds = ", ".join(get_args(UpstreamKind))
        raise ConfigInvalid(
            f"--upstream {outside.authority} cannot be reached from this machine ({error.strerror or error}): check the"
            f" address, or name an upstream of the laboratory's own ({kinds})"
        ) from None


@contextlib.contextmanager
def _ended_once() -> Iterator[None]:
    """Let the first signal that ends us be an exception, and none disturb what it makes us tidy away."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, end) for one in ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

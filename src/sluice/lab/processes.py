"""Which of a laboratory's programs run, seen in the kernel's own lists, and signals that reach nothing else.

There is no record of process numbers, so none can be out of date: a process is the laboratory's when it lives in its
PID namespace, its machine is told by its network namespace, and its part by the mark in its environment or by its name.
What has been found is signalled through a handle to that very process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sluice.errors import SluiceError
from sluice.lab.ground import PART_VARIABLE, Ground
from sluice.lab.topology import Part, Topology

NAMED = {"haproxy": "balancer", "containerd": "containerd"}
"""Programs that are known by their names, whoever started them."""
STOPPED = "T"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Running:
    """A process. ``pid`` is as this machine counts; ``age_s`` since when; ``state`` one letter (proc(5))."""

    pid: int
    started: int
    state: str
    resident_bytes: int

    @property
    def is_frozen(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        return self.state == STOPPED


def running_parts(ground: Ground, topology: Topology) -> dict[str, list[Running]]:
    """Every part's processes by the part's name, the one that was started first at the front."""
    networks = {_inode(ground.inside(f"/run/netns/{one.name}")): one.name for one in topology.machines}
    own = _inode(Path(f"/proc/{ground.init}/ns/pid"))
    names = {part.name: part for part in topology.parts}
    found: dict[str, list[Running]] = {name: [] for name in names}
    for pid in _processes():
        home = Path(f"/proc/{pid}")
        if pid == ground.init or _inode(home / "ns/pid") != own:
            continue
        name = _part_of(home, networks.get(_inode(home / "ns/net"), ""))
        running = _look(home)
        if name in found and running is not None:
            found[name].append(running)
    for processes in found.values():
        processes.sort(key=lambda one: (one.started, one.pid))
    return found


def send(processes: list[Running], number: signal.Signals) -> int:
    """Signal exactly these; how many were still there."""
    reached = 0
    for process in processes:
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            now = _look(Path(f"/proc/{process.pid}"))
            if now is not None and now.started == process.started:
                signal.pidfd_send_signal(handle, number)
                reached += 1
        except ProcessLookupError:
            continue
        finally:
            os.close(handle)
    return reached


def age_s(process: Running) -> float:
    """How long it has been running, in seconds."""
    up = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return max(0.0, up - process.started / _TICKS_PER_S)


def require_running(part: Part, processes: dict[str, list[Running]]) -> list[Running]:
    """A part's processes; raises NotRunning where there are none."""
    if not processes[part.name]:
        raise NotRunning(f"{part.name} does not run: sluice lab fault heal {part.name} starts it")
    return processes[part.name]


class NotRunning(SluiceError):
    """A part of the laboratory, or all of it, is not there."""

    code = "UNAVAILABLE"
    status = 503


def _processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _part_of(home: Path, machine: str) -> str:
    try:
        name = (home / "comm").read_text(encoding="utf-8", errors="replace").strip()
        variables = (home / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    if name in NAMED:
        return f"{machine}/{NAMED[name]}"
    if name.startswith("containerd-"):
        return ""  # a container's keeper survives its containerd, and the mark that it inherited is not its own
    mark = f"{PART_VARIABLE}=".encode()
    return next((one.removeprefix(mark).decode() for one in variables if one.startswith(mark)), "")


def _look(home: Path) -> Running | None:
    try:
        # The name, in parentheses, may itself hold spaces and parentheses (proc(5), /proc/pid/stat).
        fields = (home / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started, pages = fields[0], int(fields[19]), int(fields[21])
    if state in {"Z", "X"}:
        return None
    return Running(int(home.name), started, state, pages * os.sysconf("SC_PAGE_SIZE"))


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0

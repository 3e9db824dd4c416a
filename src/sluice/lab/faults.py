"""Taking parts of a laboratory away and giving them back.

Nothing is remembered: whether a part is dead or frozen, a link cut or a disk full is a fact that ``status`` sees, and
``heal`` undoes what it finds. Each function returns what it did, in words.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.laboratory import Laboratory
from sluice.lab.mounts import data_of, disk_options
from sluice.lab.network import DISABLED, FORWARDING, link_command
from sluice.lab.parts import WAITED_S, is_ready, launch_of, start_part
from sluice.lab.processes import require_running, send
from sluice.lab.topology import Machine, Part

POLL_S = 0.02
TAKEN_S = 5.0
"""How long the kernel may take to kill or stop a process, in seconds."""
NOTICED_S = 10.0
"""How long balancers may take to see again what was given back, in seconds."""
FILLS = 20
"""How often a disk is made as small as what is on it, while something still writes."""

Fault = Callable[[Laboratory, str], str]


def kill(lab: Laboratory, target: str) -> str:
    """SIGKILL a part, or everything on a machine. Raises ConfigInvalid, NotRunning."""
    parts = _parts(lab, target)
    struck = _identities(lab, parts)
    _signal(lab, sorted(parts, key=_starts_nothing), signal.SIGKILL)
    # An agent may have started another balancer before anybody looks: these very processes are to be gone.
    _await(lambda: not struck & _identities(lab, parts), f"{target} does not end")
    return f"{_names(parts)} killed"


def freeze(lab: Laboratory, target: str) -> str:
    """SIGSTOP a part with all its processes, or everything on a machine. Raises ConfigInvalid, NotRunning."""
    parts = _parts(lab, target)
    _signal(lab, parts, signal.SIGSTOP)
    _await(lambda: _all_frozen(lab, parts), f"{target} does not stop")
    return f"{_names(parts)} frozen"


def thaw(lab: Laboratory, target: str) -> str:
    """SIGCONT. Raises ConfigInvalid, NotRunning."""
    parts = _parts(lab, target)
    _signal(lab, parts, signal.SIGCONT)
    return f"{_names(parts)} thawed"


def cut(lab: Laboratory, target: str) -> str:
    """Drop every packet from and to a machine, silently. Raises ConfigInvalid."""
    machine = _machine(lab, target)
    lab.ground.run(link_command(machine.name, DISABLED))
    return f"link of {machine.name} cut"


def fill_disk(lab: Laboratory, target: str) -> str:
    """Leave a replica's disk no room: it becomes as small as what is on it. Raises ConfigInvalid, Unavailable."""
    machine = _replica(lab, target)
    place = data_of(machine)
    for _ in range(FILLS):
        found = os.statvfs(lab.ground.inside(place))
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        try:
            lab.ground.run(["mount", "-o", f"remount,size={used}", place])
        except Unavailable:
            continue  # more has been written meanwhile
        if lab.is_full(machine):
            return f"disk of {machine.name}/replica full with {used >> 10} KiB"
    raise Unavailable(f"the disk of {machine.name} fills faster than it can be measured: try again")


def corrupt(lab: Laboratory, target: str) -> str:
    """Flip a bit in the middle of the largest whole blob on a replica's disk. Raises ConfigInvalid, Unavailable.

    One that is damaged already is passed over: the same bit flipped again would heal it.
    """
    machine = _replica(lab, target)
    contents = lab.ground.inside(data_of(machine)) / "content"
    blobs = sorted((one for one in contents.rglob("*") if one.is_file()), key=_by_size, reverse=True)
    if not blobs:
        raise Unavailable(f"{machine.name}/replica holds no blob: pull an image through it first")
    victim = next((one for one in blobs if _is_whole(one)), None)
    if victim is None:
        repair = f"sluice lab exec {machine.name} -- sluice fsck --repair"
        raise Unavailable(f"every blob of {machine.name}/replica is damaged already: {repair} puts them away")
    flip_bit(victim)
    return f"{machine.name}/replica: a bit of sha256:{victim.name} flipped"


def flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    with path.open("r+b") as file:
        middle = path.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def _is_whole(blob: Path) -> bool:
    """A blob's file is called by its digest."""
    with blob.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == blob.name


def heal(lab: Laboratory, target: str) -> str:
    """Give back whatever is missing of a part, a machine or (``all``) everything, and wait until it answers.

    What ``corrupt`` did is not undone: finding it is the registry's business. Raises ConfigInvalid, Unavailable.
    """
    machines = list(lab.topology.machines) if target == ALL else _machines(lab, target)
    parts = list(lab.topology.parts) if target == ALL else _parts(lab, target)
    done = [_mend_link(lab, one) for one in machines if one.name in lab.cut_links()]
    done += [_mend_disk(lab, one) for one in machines if one.role == "control-plane" and lab.is_full(one)]
    # A balancer is started by its agent, which may be gone, too.
    keepers = [Part(part.machine, "agent") for part in parts if part.kind == "balancer"]
    done += _revive(lab, list(dict.fromkeys([*keepers, *parts])))
    for part in parts:
        _await(partial(is_ready, lab.ground, part), f"{part.name} does not answer", WAITED_S[part.kind])
    if done:
        _let_balancers_notice(lab)
    return "; ".join(done) or f"nothing is missing of {target}"


ALL = "all"
FAULTS: dict[str, Fault] = {
    "kill": kill,
    "freeze": freeze,
    "thaw": thaw,
    "cut": cut,
    "heal": heal,
    "fill-disk": fill_disk,
    "corrupt": corrupt,
}


def _let_balancers_notice(lab: Laboratory) -> None:
    """What has been given back is of use only then. Some may have nobody left to notice: that is no failure."""
    running, cut = lab.running(), lab.cut_links()
    waiting = [
        part
        for part in lab.topology.parts
        if part.kind == "balancer" and part.machine.name not in cut and running[part.name]
    ]
    deadline = time.monotonic() + NOTICED_S
    while waiting and time.monotonic() < deadline:
        waiting = [part for part in waiting if not is_ready(lab.ground, part)]
        time.sleep(POLL_S)


def _revive(lab: Laboratory, parts: list[Part]) -> list[str]:
    running, done = lab.running(), []
    for part in parts:
        processes = running[part.name]
        if any(one.is_frozen for one in processes):
            send(processes, signal.SIGCONT)
            done.append(f"{part.name} thawed")
        if not processes and launch_of(lab.topology, part) is not None:
            start_part(lab.ground, lab.directory, lab.topology, part)
            done.append(f"{part.name} started")
    return done


def _mend_link(lab: Laboratory, machine: Machine) -> str:
    lab.ground.run(link_command(machine.name, FORWARDING))
    return f"link of {machine.name} healed"


def _mend_disk(lab: Laboratory, machine: Machine) -> str:
    lab.ground.run(["mount", "-o", f"remount,{disk_options(lab.topology)}", data_of(machine)])
    return f"disk of {machine.name} has room again"


def _signal(lab: Laboratory, parts: list[Part], number: signal.Signals) -> None:
    running = lab.running()
    if len(parts) == 1:
        require_running(parts[0], running)
    for part in parts:
        send(running[part.name], number)


def _identities(lab: Laboratory, parts: list[Part]) -> set[tuple[int, int]]:
    running = lab.running()
    return {(one.pid, one.started) for part in parts for one in running[part.name]}


def _all_frozen(lab: Laboratory, parts: list[Part]) -> bool:
    running = lab.running()
    return all(one.is_frozen for part in parts for one in running[part.name])


def _parts(lab: Laboratory, target: str) -> list[Part]:
    """A part by its name, or all on the machine of that name."""
    on_machine = [part for part in lab.topology.parts if part.machine.name == target]
    return on_machine or [lab.topology.part(target)]


def _machines(lab: Laboratory, target: str) -> list[Machine]:
    """A machine by its name; for a part none, but a replica has a disk."""
    if "/" not in target:
        return [lab.topology.machine(target)]
    part = lab.topology.part(target)
    return [part.machine] if part.kind == "replica" else []


def _machine(lab: Laboratory, target: str) -> Machine:
    return lab.topology.machine(target.removesuffix("/link"))


def _replica(lab: Laboratory, target: str) -> Machine:
    machine = lab.topology.machine(target.removesuffix("/replica"))
    if machine.role != "control-plane":
        replicas = ", ".join(one.name for one in lab.topology.control_planes)
        raise ConfigInvalid(f"{target} has no replica: name one of {replicas}")
    return machine


def _starts_nothing(part: Part) -> bool:
    """An agent sees its balancer's end in the same instant, and would start another before its own."""
    return part.kind != "agent"


def _by_size(path: Path) -> tuple[int, str]:
    return path.stat().st_size, path.name


def _names(parts: list[Part]) -> str:
    return ", ".join(part.name for part in parts)


def _await(done: Callable[[], bool], problem: str, seconds: float = TAKEN_S) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Unavailable(f"{problem} within {seconds:g} s")
        time.sleep(POLL_S)

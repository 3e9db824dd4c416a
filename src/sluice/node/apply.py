"""``apply`` and ``undo``: look, plan, and do it, with one process at a time and what broke off ended first.

The thin part between the pure ``plan`` and ``execute``. An unchanged node costs reading and comparing; nothing is
written and nothing flushed. The layout that was applied lies in ``<paths.state>`` with its secrets, so that a node
starts from it when nobody tells it another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets as random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sluice.cluster.documents import dump_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import NodeRefused
from sluice.node.desired import desired_files
from sluice.node.execute import NoPrograms, Programs, execute, recover
from sluice.node.files import PRIVATE_MODE, PUBLIC_MODE, Files
from sluice.node.found import FileState, look, nearest_directory, read_state
from sluice.node.obstacles import Refusal
from sluice.node.plan import DIRECTORY_MODE, STATE, Plan, Situation, make_plan, make_undo, watched
from sluice.node.record import (
    AGENT_LOCK,
    JOURNAL,
    LAYOUT,
    OWN_DIRECTORIES,
    OWN_NAMES,
    RECORD,
    SECRETS,
    Journal,
    Part,
    Record,
    Step,
    encode,
    keep,
    read_record,
    remembers,
)
from sluice.pki.durable import errors_named, remove_torn, sync_directory, write_durably

NO_PROGRAMS = NoPrograms()
LOCK_S, LOCK_AGAIN_S = 1.0, 0.05
"""How long an agent tries for its lock: whoever asks whether one lives has it for an instant."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What a node is to become. ``files`` of ``part`` are the whole truth about that part. ``document`` and
    ``secrets`` are kept as the last good ones; None leaves those that are kept."""

    state: Path
    files: Files
    hosts: str
    part: Part = "node"
    force: bool = False
    document: NodeLayout | None = None
    secrets: NodeSecrets | None = None


def intend(layout: NodeLayout, secrets: NodeSecrets | None, *, force: bool = False) -> Intent:
    """A layout, rendered. Raises ConfigInvalid where it cannot be."""
    files = desired_files(layout, secrets)
    return Intent(
        Path(layout.paths.state), files, layout.paths.containerd_hosts, force=force, document=layout, secrets=secrets
    )


def plan_intent(intent: Intent, now: float | None = None) -> Plan:
    """What ``apply_intent`` would do. Reads only."""
    record = read_record(intent.state)
    found = look(watched(intent.files, record, intent.hosts))
    moment = time.time() if now is None else now
    return make_plan(Situation(intent.files, record, found, moment, intent.hosts, intent.part, intent.force))


def apply_intent(intent: Intent, programs: Programs = NO_PROGRAMS, *, now: float | None = None) -> Plan:
    """Do it, and return what was done. Raises NodeRefused, ConfigInvalid or StorageFull, with nothing changed."""
    with locked(intent.state) as made:
        recover(intent.state, programs)
        if intent.state.is_dir():
            return _apply(intent, programs, made, now)
    return apply_intent(intent, programs, now=now)  # it was an undo that was interrupted, and it took its memory along


def _apply(intent: Intent, programs: Programs, made: list[str], now: float | None) -> Plan:
    plan = plan_intent(intent, now)
    refuse(plan.refusals)
    kept = [*_kept_record(intent, plan, made), *_kept_documents(intent)]
    if plan.steps or kept:
        _check_writable(plan)
        execute(intent.state, Journal(token=random.token_hex(4), steps=(*plan.steps, *kept)), programs)
    return plan


def plan_undo(state: Path, *, force: bool = False) -> Plan:
    """What ``undo`` would do. Reads only."""
    record = read_record(state)
    return make_undo(record, look(watched({}, record, str(state))), force=force)


def undo(state: Path, programs: Programs = NO_PROGRAMS, *, force: bool = False) -> Plan:
    """Everything as it was before Sluice. Raises NodeRefused where a file was edited since, with nothing changed.

    A directory without anything of ours is left alone: it may be somebody else's, named by mistake.
    """
    if not state.is_dir():
        return Plan((), (), Record())
    with locked(state):
        if not remembers(state):
            _sweep(state)
            return Plan((), (), Record())
        return _undo(state, programs, force=force)


def _undo(state: Path, programs: Programs, *, force: bool) -> Plan:
    with agent_locked(state):
        if recover(state, programs) and not state.is_dir():
            return Plan((), (), Record())
        _sweep(state)
        plan = plan_undo(state, force=force)
        refuse(plan.refusals)
        _check_writable(plan)
        ours = read_record(state).directories
        leave = [str(path) for path in (state, *state.parents) if str(path) in ours]
        leave = [*(str(state / name) for name in OWN_DIRECTORIES), *leave]
        steps = (*plan.steps, *_forgotten(state))
        execute(state, Journal(token=random.token_hex(4), steps=steps, leave=tuple(leave)), programs)
        return plan


def interrupted(state: Path) -> bool:
    """Whether an apply broke off here and nobody is at it; the next one ends it first. For any account."""
    if not (state / JOURNAL).exists():
        return False
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _try_lock(descriptor, fcntl.LOCK_SH) and (state / JOURNAL).exists()
    finally:
        os.close(descriptor)


def refuse(refusals: tuple[Refusal, ...]) -> None:
    """Raise NodeRefused where there is one."""
    if refusals:
        raise NodeRefused(
            "nothing was changed: " + "; ".join(map(str, refusals)),
            detail=[{"path": one.path, "what": one.what, "remedy": one.remedy} for one in refusals],
        )


def adopt_state(state: Path) -> None:
    """Make the directory of our memory before there is an apply, and remember that it is ours."""
    with locked(state) as made:
        if made:
            write_durably(state / RECORD, encode(Record(directories=dict.fromkeys(made, DIRECTORY_MODE))))


@contextlib.contextmanager
def agent_locked(state: Path) -> Iterator[None]:
    """One agent for a node, and no undo under it. Raises NodeRefused where there is one already."""
    with (state / AGENT_LOCK).open("ab") as file:
        deadline = time.monotonic() + LOCK_S
        while not _try_lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise NodeRefused(
                    f"nothing was changed: an agent (sluice node run) keeps this node, from {state}: stop it first"
                )
            time.sleep(LOCK_AGAIN_S)
        yield


def sweep_state(state: Path) -> None:
    """Remove what a killed agent had begun to write; for an agent that is locked, since it alone writes its status."""
    with locked(state):
        _sweep(state)


def agent_lives(state: Path) -> bool:
    """Whether an agent keeps this node: by its lock, since numbers of processes are used again."""
    try:
        with (state / AGENT_LOCK).open("rb") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(state: Path) -> Iterator[list[str]]:
    """One process at a time; another one waits. Yields the directories that had to be made for it, parents first."""
    while True:
        made = _make_state(state)
        descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if state.is_dir() and os.path.samestat(os.fstat(descriptor), os.stat(state)):
                yield made
                return
        finally:
            os.close(descriptor)
            for path in reversed(made):
                with contextlib.suppress(OSError):  # only where nothing came of it
                    os.rmdir(path)


def _make_state(state: Path) -> list[str]:
    missing = [path for path in (state, *state.parents) if not path.is_dir()]
    for path in reversed(missing):
        with errors_named(path, "made"):
            path.mkdir(exist_ok=True)
            path.chmod(DIRECTORY_MODE)
            sync_directory(path.parent)
    return [str(path) for path in reversed(missing)]


def _kept_record(intent: Intent, plan: Plan, made: list[str]) -> Iterator[Step]:
    if not made and not plan.record.directories and not any(intent.state.iterdir()):
        made = [str(intent.state)]  # an earlier start got no further than to make it
    directories = {**dict.fromkeys(made, DIRECTORY_MODE), **plan.record.directories}
    record = plan.record.model_copy(update={"directories": directories})
    yield from _kept(intent.state / RECORD, encode(record), PRIVATE_MODE)


def _kept_documents(intent: Intent) -> Iterator[Step]:
    if intent.document is not None:
        yield from _kept(intent.state / LAYOUT, dump_document(intent.document), PUBLIC_MODE)
    if intent.secrets is not None:
        yield from _kept(intent.state / SECRETS, dump_document(intent.secrets), PRIVATE_MODE)


def _kept(path: Path, content: bytes, mode: int) -> Iterator[Step]:
    before = _state(path)
    after = FileState(content, mode, os.geteuid(), os.getegid())
    if before is None or not before.same_as(after):
        was = keep(before) if before is not None else None
        yield Step(do="write", path=str(path), group=STATE, before=was, after=keep(after))


def _sweep(state: Path) -> None:
    """What a killed process had begun to write of our own."""
    remove_torn(state, OWN_NAMES)
    for torn in state.glob(".sluice-*.tmp"):
        torn.unlink(missing_ok=True)


def _forgotten(state: Path) -> Iterator[Step]:
    for name in sorted(OWN_NAMES - {JOURNAL}):
        if (before := _state(state / name)) is not None:
            yield Step(do="remove", path=str(state / name), group=STATE, before=keep(before))


def _state(path: Path) -> FileState | None:
    found = read_state(str(path))
    if isinstance(found, str):
        raise NodeRefused(f"nothing was changed: {path} is {found}, and Sluice keeps its memory there: move it away")
    return found


def _check_writable(plan: Plan) -> None:
    """What can be seen beforehand is refused beforehand; as root, only a read-only file system can."""
    for directory in sorted({nearest_directory(step.path) for step in plan.steps if step.path.startswith("/")}):
        if not os.access(directory, os.W_OK | os.X_OK):
            read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
            reason = "is on a read-only file system" if read_only else "cannot be written to by this account"
            remedy = "mount it writable" if read_only else "start this command as root"
            refuse((Refusal(str(directory), reason, remedy),))

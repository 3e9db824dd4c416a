"""What has to change on a node: desired files against what is found and what is ours. PURE.

``apply`` does what a ``Plan`` says, the command line shows it. A plan is all or nothing: one refusal, and nothing at
all is changed. Rules:

- A file that is not ours is never replaced, nor one of ours that somebody has edited since; ``force`` replaces both,
  and ``undo`` brings back what was there when Sluice first came. What only stops having an effect when Sluice takes a
  host (``_default``, a CA beside a hosts.toml) is refused then, and by force left where it is from then on.
- A file of ours that lost its mode or owner, or that somebody removed, is put back without asking.
- What others refer to (``early``) is written first. When nobody wants it any more, it is kept for ``KEEP_S`` and then
  removed: containerd reads hosts.toml twice in a pull, and a CA file that is missing the second time fails the pull.
- Where only an ``edit`` of a file is ours, the rest is its owner's at every time: it is written when that edit is
  missing, with the mode and owner that it has, and taking it back takes that edit out of what the file is by then.
- ``part`` says whose files are planned; those of the other part stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from sluice.node.files import PRIVATE_MODE, Files, FileSpec
from sluice.node.found import FileState, Found, Watched, ancestors
from sluice.node.imports import CannotChange, take_out
from sluice.node.obstacles import Obstacles, Refusal, accepted, find_obstacles
from sluice.node.record import Entry, Part, Record, Step, digest, keep

KEEP_S = 600.0
"""How long an unwanted early file stays. A pull that began before reads it within seconds; a kubelet's retry of one
begins anew."""
DIRECTORY_MODE, PRIVATE_DIRECTORY_MODE = 0o755, 0o700
MAKE, EARLY, CHECKED, RELOAD, PLAIN, STOP, REMOVE, REMOVE_CHECKED, REMOVE_EARLY, UNMAKE, STATE = range(11)
"""The order of a plan's steps: each group is on disk before the next begins."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a plan is made of. ``now`` in seconds of the epoch. ``hosts`` is containerd's directory of hosts."""

    desired: Files
    record: Record
    found: Found
    now: float
    hosts: str
    part: Part = "node"
    force: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """``steps`` in the order in which they are to be done, and ``record`` as it is to be afterwards. ``due_at``: when a
    kept file may go, and another plan is worth making."""

    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...]
    record: Record
    due_at: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the node is as it should be."""
        return not self.steps and not self.refusals


@dataclass(slots=True)
class _Draft:
    steps: list[Step] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    due: list[float] = field(default_factory=list)


def watched(desired: Files, record: Record, hosts: str) -> Watched:
    """Which paths have to be looked at before a plan can be made."""
    files = frozenset(desired) | frozenset(record.files)
    above = ancestors(files)
    in_hosts = {path for path in above if path.startswith(f"{hosts}/")}
    return Watched(files, frozenset(above), frozenset({hosts, *in_hosts, *record.directories}))


def make_plan(given: Situation) -> Plan:
    """Decide."""
    obstacles = Obstacles(given.desired, given.record, given.found, given.part, given.force)
    draft = _Draft()
    for path, spec in given.desired.items():
        (_plan_wanted if spec.edit is None else _plan_edit)(given, path, spec, draft)
    for path, entry in given.record.files.items():
        if path not in given.desired:
            _plan_unwanted(given, path, entry, draft)
    draft.steps += _programs(draft.steps)
    made = _made(given, draft)
    gone = tuple(_gone(given.found, given.record.directories, draft))
    ours = {path: mode for path, mode in {**given.record.directories, **made}.items() if path not in gone}
    directories = [Step(do="make", path=path, group=MAKE, mode=mode) for path, mode in made.items()]
    steps = _sorted((*directories, *draft.steps, *_unmake(given.record, gone)))
    refusals = tuple(find_obstacles(obstacles, given.hosts))
    record = Record(files=draft.entries, directories=ours, accepted=accepted(obstacles, given.hosts))
    return Plan(steps, refusals, record, min(draft.due, default=None))


def make_undo(record: Record, found: Found, *, force: bool) -> Plan:
    """Everything as it was before Sluice: originals restored, the rest of our files removed, our directories too."""
    given = Situation({}, record, found, 0.0, "", force=force)
    draft = _Draft()
    for path, entry in record.files.items():
        _take_back(given, path, entry, draft)
    stopped = sorted({entry.check for entry in record.files.values() if entry.check is not None})
    draft.steps += [Step(do="stop", path=program, group=REMOVE_CHECKED) for program in stopped]
    gone = tuple(_gone(found, record.directories, draft))
    refusals = tuple(find_obstacles(Obstacles({}, record, found, None, force), ""))
    return Plan(_sorted((*draft.steps, *_unmake(record, gone))), refusals, Record())


def _plan_wanted(given: Situation, path: str, spec: FileSpec, draft: _Draft) -> None:
    state, entry = given.found.files.get(path), given.record.files.get(path)
    uid, gid = given.found.owner
    wanted = FileState(spec.content, spec.mode, uid, gid)
    draft.entries[path] = Entry(
        sha256=digest(spec.content),
        part=given.part,
        early=spec.early,
        check=spec.check,
        private=spec.mode == PRIVATE_MODE,
        original=entry.original if entry is not None else keep(state) if state is not None else None,
    )
    if state is None or not state.same_as(wanted):
        draft.steps.append(_write(path, state, wanted, _write_group(spec), spec.check))


def _plan_edit(given: Situation, path: str, spec: FileSpec, draft: _Draft) -> None:
    state, known = given.found.files.get(path), given.record.files.get(path)
    if state is not None and known is not None and state.content == spec.content:
        draft.entries[path] = known
        return
    owner = given.found.owner
    wanted = FileState(spec.content, spec.mode, *owner) if state is None else replace(state, content=spec.content)
    original = keep(state) if state is not None else None
    draft.entries[path] = Entry(sha256=digest(spec.content), part=given.part, original=original, edit=spec.edit)
    draft.steps.append(_write(path, state, replace(wanted, mtime_ns=None), _write_group(spec), spec.check))


def _plan_unwanted(given: Situation, path: str, entry: Entry, draft: _Draft) -> None:
    if entry.part != given.part:
        draft.entries[path] = entry
        return
    since = entry.unwanted_at if entry.unwanted_at is not None else given.now
    if entry.early and given.found.files.get(path) is not None and since + KEEP_S > given.now:
        draft.entries[path] = entry.model_copy(update={"unwanted_at": since})
        draft.due.append(since + KEEP_S)
        return
    _take_back(given, path, entry, draft)


def _take_back(given: Situation, path: str, entry: Entry, draft: _Draft) -> None:
    state = given.found.files.get(path)
    if entry.edit is not None and (state is None or digest(state.content) != entry.sha256):
        _take_edit_out(given, path, entry, draft)
    elif entry.original is not None:
        original = entry.original.state
        if entry.edit is not None and state is not None:
            original = replace(original, mode=state.mode, uid=state.uid, gid=state.gid)
        if state is None or not state.same_as(original) or state.mtime_ns != original.mtime_ns:
            group = EARLY if entry.early else PLAIN
            draft.steps.append(_write(path, state, original, group, None))
    elif state is not None:
        group = REMOVE_EARLY if entry.early else REMOVE_CHECKED if entry.check else REMOVE
        draft.steps.append(Step(do="remove", path=path, group=group, before=keep(state), check=entry.check))


def _take_edit_out(given: Situation, path: str, entry: Entry, draft: _Draft) -> None:
    """Of a file that its owner has changed since; one that is gone stays gone."""
    state = given.found.files.get(path)
    if state is None or entry.edit is None:
        return
    try:
        content = take_out(state.content, entry.edit, path)
    except CannotChange:  # a refusal, unless by force
        _take_back(given, path, entry.model_copy(update={"edit": None}), draft)
        return
    if content != state.content:
        after = replace(state, content=content, mtime_ns=None)
        draft.steps.append(_write(path, state, after, PLAIN, None))


def _programs(steps: list[Step]) -> Iterator[Step]:
    """A balancer takes its new configuration before anybody is sent to it, and stops after nobody is."""
    written = {step.check for step in steps if step.do == "write" and step.check is not None}
    removed = {step.check for step in steps if step.do == "remove" and step.check is not None}
    for program in sorted(written):
        yield Step(do="reload", path=program, group=RELOAD)
    for program in sorted(removed - written):
        yield Step(do="stop", path=program, group=REMOVE_CHECKED)


def _made(given: Situation, draft: _Draft) -> dict[str, int]:
    """The directories that have to be made, parents first, with their modes: private where all below is."""
    written = [step for step in draft.steps if step.do == "write"]
    missing = {path for path in ancestors(step.path for step in written) if given.found.directories.get(path) is None}
    public = ancestors(step.path for step in written if step.after is not None and step.after.mode != PRIVATE_MODE)
    return {path: DIRECTORY_MODE if path in public else PRIVATE_DIRECTORY_MODE for path in sorted(missing)}


def _gone(found: Found, ours: Iterable[str], draft: _Draft) -> Iterator[str]:
    """Our directories in which nothing is left, children first."""
    removed = {step.path for step in draft.steps if step.do == "remove"}
    staying = ancestors(path for path in draft.entries) | ancestors(
        step.path for step in draft.steps if step.do == "write"
    )
    for path in sorted(ours, reverse=True):
        entries = found.directories.get(path)
        left = {f"{path}/{name}" for name in entries or ()} - removed
        if path not in staying and not left:
            removed.add(path)
            yield path


def _write_group(spec: FileSpec) -> int:
    return EARLY if spec.early else CHECKED if spec.check is not None else PLAIN


def _write(path: str, before: FileState | None, after: FileState, group: int, check: str | None) -> Step:
    was = keep(before) if before is not None else None
    return Step(do="write", path=path, group=group, before=was, after=keep(after), check=check)


def _unmake(record: Record, gone: Iterable[str]) -> list[Step]:
    return [Step(do="unmake", path=path, group=UNMAKE, mode=record.directories[path]) for path in gone]


def _sorted(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: step.group))

"""What stands in a plan's way: foreign files, edited ones, links and directories where files should be. PURE.

Part of ``plan``. Each obstacle names its path and what the user can do; nothing is changed while there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sluice.node.files import Files
from sluice.node.found import FileState, Found, ancestors
from sluice.node.imports import CannotChange, take_out
from sluice.node.record import Entry, Part, Record, digest

DEFAULT_HOST = "_default"
_WITH_PORT = re.compile(r"(.+)_(\d+)_")
_MOVE = "move it away if nothing needs it"
_REPLACE = "or use --force, which replaces it; undo brings it back"
_LEAVE = "or use --force, which leaves it there without effect"
_DEFAULT = "move it away, or use --force, which leaves it to all other hosts"
_RESTORE = "then undo again, or use --force, which brings the file from before Sluice back and drops every change since"
_EDITED = "keep your change elsewhere and remove the file, or use --force, which drops the change"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is done: ``path`` is ``what``, and ``remedy`` is the way on."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Obstacles:
    """Where to look for them. ``part``: whose files of the record are meant, None for all."""

    desired: Files
    record: Record
    found: Found
    part: Part | None
    force: bool


def find_obstacles(given: Obstacles, hosts: str) -> Iterator[Refusal]:
    """All of them. ``force`` leaves only those that replacing files cannot solve."""
    yield from _odd(given)
    if not given.force:
        yield from _foreign(given)
        yield from _edited(given)
        yield from (one for one in _passed(given, hosts) if one.path not in given.record.accepted)
    yield from _other_names(given, hosts)


def accepted(given: Obstacles, hosts: str) -> tuple[str, ...]:
    """What is in the way of nothing because it was left there by force, now or before."""
    passed = {one.path for one in _passed(given, hosts)} if given.force else set()
    return tuple(sorted(passed | set(given.record.accepted)))


def _passed(given: Obstacles, hosts: str) -> Iterator[Refusal]:
    """What stops having an effect when Sluice takes a host, and can stay where it is."""
    names = _host_names([path for path in given.desired if path not in given.record.files], hosts)
    if names and DEFAULT_HOST in (given.found.directories.get(hosts) or ()):
        yield Refusal(f"{hosts}/{DEFAULT_HOST}", "serves all hosts, and Sluice is about to take some", _DEFAULT)
    for name in sorted(names):
        yield from _neighbours(given, f"{hosts}/{name}")


def _odd(given: Obstacles) -> Iterator[Refusal]:
    ours = set(given.desired) | {path for path, _ in _entries(given)}
    above = ancestors(given.desired)
    for path, kind in sorted(given.found.odd.items()):
        if path in ours:
            yield Refusal(path, f"is {kind}, and Sluice keeps a file there", _MOVE)
        elif path in above:
            yield Refusal(path, f"is {kind}, and Sluice needs a directory there", _MOVE)


def _foreign(given: Obstacles) -> Iterator[Refusal]:
    for path, spec in sorted(given.desired.items()):
        state = given.found.files.get(path)
        if state is not None and path not in given.record.files and state.content != spec.content:
            yield Refusal(path, "is there already and not from Sluice", f"{_MOVE}, {_REPLACE}")


def _edited(given: Obstacles) -> Iterator[Refusal]:
    """What has the desired content already, or where undo would restore what is there, is in nobody's way."""
    for path, entry in _entries(given):
        state = given.found.files.get(path)
        if state is None or digest(state.content) == entry.sha256:
            continue
        if entry.edit is not None:
            yield from _stuck(path, entry, state) if path not in given.desired else ()
            continue
        spec = given.desired.get(path)
        goal = spec.content if spec is not None else entry.original.content if entry.original is not None else None
        if state.content != goal:
            yield Refusal(path, "was changed since Sluice wrote it", _EDITED)


def _stuck(path: str, entry: Entry, state: FileState) -> Iterator[Refusal]:
    """Somebody else's file out of which what is ours cannot be taken."""
    assert entry.edit is not None
    try:
        take_out(state.content, entry.edit, path)
    except CannotChange as error:
        what = "was changed so that Sluice's import cannot be taken out of it without changing more"
        yield Refusal(path, what, f"{error}, {_RESTORE}")


def _other_names(given: Obstacles, hosts: str) -> Iterator[Refusal]:
    """containerd takes the first directory of a host that exists (``a_1_``, ``a:1``, ``_default``) and only it."""
    names = _host_names(given.desired, hosts)
    same = {_host(name): name for name in names}
    for name in sorted((given.found.directories.get(hosts) or frozenset()) - names):
        if _host(name) in same and f"{hosts}/{name}" not in given.record.directories:
            yield Refusal(f"{hosts}/{name}", f"is for the same host as {same[_host(name)]}, which Sluice writes", _MOVE)


def _neighbours(given: Obstacles, directory: str) -> Iterator[Refusal]:
    for name in sorted(given.found.directories.get(directory) or ()):
        path = f"{directory}/{name}"
        if path not in given.desired and path not in given.record.files and path not in given.found.directories:
            yield Refusal(path, "is not from Sluice, and for a host that Sluice serves", f"{_MOVE}, {_LEAVE}")


def _entries(given: Obstacles) -> Iterator[tuple[str, Entry]]:
    for path, entry in sorted(given.record.files.items()):
        if given.part is None or entry.part == given.part:
            yield path, entry


def _host_names(paths: Iterable[str], hosts: str) -> set[str]:
    """The names of the directories below ``hosts`` that these files are in."""
    below = (path.removeprefix(f"{hosts}/").split("/") for path in paths if hosts and path.startswith(f"{hosts}/"))
    return {parts[0] for parts in below if len(parts) > 1}


def _host(name: str) -> str:
    return _WITH_PORT.sub(r"\1:\2", name)

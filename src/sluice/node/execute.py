"""Carrying a journal out: every file whole at every instant, and after a crash either finished or undone.

Part of ``apply``. The order is: the journal is on disk (what was there, what is meant); new files are staged beside
their places and on disk; then they are renamed into place group by group, each group on disk before the next; files
are removed last; then the journal goes. A failure before the first rename leaves nothing behind but what is removed
again; one after it is rolled back. A process that dies leaves the journal, and ``recover`` ends what it began.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Protocol

from sluice.errors import NodeHalfway, SluiceError
from sluice.node.found import FileState, read_state
from sluice.node.record import JOURNAL, OWN_DIRECTORIES, Journal, Kept, Step, encode, read_journal
from sluice.pki.durable import errors_named, remove_torn, sync_directory, write_durably

FILES = frozenset({"write", "remove"})


class Programs(Protocol):
    """What is told about files of its own: by its name, as ``FileSpec.check`` has it."""

    def check(self, program: str, staged: Path) -> None:
        """Judge a configuration that lies beside its place. Raises ConfigInvalid with the program's own words."""

    def reload(self, program: str) -> None:
        """Take the configuration now in place, without an interruption; start where it does not run."""

    def stop(self, program: str) -> None:
        """Its configuration is gone: let it end what it does, and end."""


class NoPrograms:
    """For files alone."""

    def check(self, program: str, staged: Path) -> None:
        """Everything is right."""

    def reload(self, program: str) -> None:
        """Nothing runs."""

    def stop(self, program: str) -> None:
        """Nothing runs."""


def execute(state: Path, journal: Journal, programs: Programs) -> None:
    """All of it or nothing. Raises StorageFull, ConfigInvalid or what a program says, with everything as before.

    Raises NodeHalfway where even going back fails; the journal stays then, for ``recover``.
    """
    write_durably(state / JOURNAL, encode(journal))
    _end(state, journal, programs)


def recover(state: Path, programs: Programs) -> bool:
    """Finish what an interrupted process began, or undo it where that cannot be; False where there is nothing."""
    remove_torn(state, (JOURNAL,))  # nothing had begun then
    journal = read_journal(state)
    if journal is None:
        return False
    _end(state, journal, programs)
    return True


def _end(state: Path, journal: Journal, programs: Programs) -> None:
    try:
        _stage(journal)
        _commit(journal, programs)
    except (OSError, SluiceError) as error:
        _unstage(journal)
        _give_up(journal, programs, error)
        _close(state, journal, done=False)
        raise
    _unstage(journal)
    _close(state, journal, done=True)


def _give_up(journal: Journal, programs: Programs, error: OSError | SluiceError) -> None:
    try:
        _go_back(journal, programs)
    except (OSError, SluiceError) as worse:
        raise NodeHalfway(
            f"{error}; and what was done so far could not be undone ({worse}): "
            "remove the cause and start again, which finishes or undoes it"
        ) from error


def _close(state: Path, journal: Journal, *, done: bool) -> None:
    with errors_named(state / JOURNAL, "removed"):
        (state / JOURNAL).unlink(missing_ok=True)
        sync_directory(state)
    if done:
        for path in journal.leave:
            if Path(path).name in OWN_DIRECTORIES and Path(path).parent == state:
                shutil.rmtree(path, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):  # somebody else put something in, which stays
                Path(path).rmdir()


def staged_path(journal: Journal, number: int) -> Path:
    """Where the file of a step lies until it is renamed: beside its place, hidden, with an ending that nobody reads."""
    step = journal.steps[number]
    return Path(step.path).with_name(f".sluice-{journal.token}-{number}.tmp")


def _stage(journal: Journal) -> None:
    touched: set[Path] = set()
    for step in journal.steps:
        if step.do == "make":
            _make(Path(step.path), step.mode)
            touched.add(Path(step.path).parent)
    _sync(touched)
    for number, step in _pending(journal):
        if step.after is not None:
            _write(staged_path(journal, number), Path(step.path), step.after)


def _commit(journal: Journal, programs: Programs) -> None:
    pending = dict(_pending(journal))
    numbered = list(enumerate(journal.steps))
    for _, group in groupby(numbered, key=lambda pair: pair[1].group):
        steps = list(group)
        for number, step in steps:
            if step.do == "write" and step.check is not None and number in pending:
                programs.check(step.check, staged_path(journal, number))
        touched: set[Path] = set()
        for number, step in steps:
            if step.do not in FILES or number in pending:
                _do(journal, number, programs)
                touched.add(Path(step.path).parent)
        _sync(touched)


def _do(journal: Journal, number: int, programs: Programs) -> None:
    step = journal.steps[number]
    path = Path(step.path)
    with errors_named(path, "changed"):
        if step.do == "write":
            staged_path(journal, number).rename(path)
        elif step.do == "remove":
            path.unlink(missing_ok=True)
        elif step.do == "unmake":
            with contextlib.suppress(OSError):  # not empty any more, or gone: both are fine
                path.rmdir()
        elif step.do == "reload":
            programs.reload(step.path)
        elif step.do == "stop":
            programs.stop(step.path)


def _pending(journal: Journal) -> Iterator[tuple[int, Step]]:
    """File steps that are still to be done. What is neither as before nor as after, somebody else has changed since:
    it stays, and the next plan speaks about it."""
    for number, step in enumerate(journal.steps):
        if step.do in FILES and _is(read_state(step.path), step.before) and step.before != step.after:
            yield number, step


def _go_back(journal: Journal, programs: Programs) -> None:
    """The same road backwards: what was removed is there again before what refers to it."""
    backwards = reversed(list(enumerate(journal.steps)))
    for _, group in groupby(backwards, key=lambda pair: pair[1].group):
        touched = {Path(step.path).parent for number, step in group if _undone(journal, number)}
        _sync(path for path in touched if path.is_dir())
    for step in journal.steps:
        if step.do == "reload":
            ran = any(one.check == step.path and one.before is not None for one in journal.steps)
            with contextlib.suppress(OSError, SluiceError):  # the first error is the one to tell
                programs.reload(step.path) if ran else programs.stop(step.path)


def _undone(journal: Journal, number: int) -> bool:
    """Take one step back; False where there was nothing to take back."""
    step = journal.steps[number]
    path = Path(step.path)
    if step.do == "unmake":
        _make(path, step.mode)
    elif step.do == "make":
        with contextlib.suppress(OSError):
            path.rmdir()
    elif step.do not in FILES or step.before == step.after or not _is(read_state(step.path), step.after):
        return False
    elif step.before is None:
        with errors_named(path, "removed"):
            path.unlink()
    else:
        aside = staged_path(journal, number)
        _write(aside, path, step.before)
        with errors_named(path, "changed"):
            aside.rename(path)
    return True


def _unstage(journal: Journal) -> None:
    for number, step in enumerate(journal.steps):
        if step.do == "write":
            with contextlib.suppress(OSError):  # a file that cannot be removed was never made
                staged_path(journal, number).unlink()


def _make(path: Path, mode: int) -> None:
    with errors_named(path, "made"):
        path.mkdir(exist_ok=True)
        path.chmod(mode)  # the umask may have taken bits


def _write(aside: Path, path: Path, content: Kept) -> None:
    with errors_named(path, "written"):
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content.content)
            file.flush()
            if (content.uid, content.gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, content.uid, content.gid)
            os.fchmod(descriptor, content.mode)  # after the owner, whose change takes set-user-ID bits
            if content.mtime_ns is not None:
                os.utime(descriptor, ns=(content.mtime_ns, content.mtime_ns))
            os.fsync(descriptor)


def _sync(directories: Iterable[Path]) -> None:
    for directory in directories:
        with errors_named(directory, "written"), contextlib.suppress(FileNotFoundError):
            sync_directory(directory)


def _is(found: FileState | str | None, meant: Kept | None) -> bool:
    if isinstance(found, str) or found is None or meant is None:
        return found is None and meant is None
    return found.same_as(meant.state)

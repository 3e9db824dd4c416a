"""A process that changes a node's files and dies by SIGKILL just before the n-th of them.

``python -m faults.mortal`` reads one job a line (JSON) and forks a child for each, so that a death costs milliseconds.
The child kills itself from an audit hook (PEP 578), which the interpreter calls before it opens for writing, renames,
removes or makes anything: what is on disk then is what a kill between two operations leaves.

An agent (``agent``) dies at a named point instead: at the n-th of one kind of event, among them what is raised here
before and after each call of a program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import SluiceError
from sluice.node.agent import Agent, Place
from sluice.node.apply import apply_intent, intend, undo
from sluice.node.prepare import intend_preparation
from sluice.node.programs import NodePrograms

EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"})
SURVIVED, FAILED = 0, 3
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS: tuple[tuple[Any, str], ...] = (
    *((NodePrograms, name) for name in ("check", "reload", "stop")),
    (subprocess.Popen, "communicate"),
    (signal, "pidfd_send_signal"),
)
"""What an agent is killed before and after, besides: a program that has just been started, or told something."""
APPLIED = "said"
"""What an agent says when it has applied a layout is the end of that, as far as anybody can be killed in it."""
Point = tuple[str, int]
"""The kind of an event, and which one of it."""


class Mortal:
    """The process; ``with`` ends it."""

    def __enter__(self) -> Mortal:
        tests = Path(__file__).parent.parent
        paths = [str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.mortal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def live(self, job: dict[str, object], until: int | None = None) -> bool:
        """Do a job (``layout`` and ``secrets`` files, ``now``, ``force``; or ``undo``, a state directory; or
        ``prepare``, a layout's file). False where it died before its ``until``-th operation, True where it came to its
        end first."""
        return self._live({**job, "until": until})

    def die_at(self, job: dict[str, object], point: Point) -> list[Point]:
        """Run an ``agent`` (``layout`` and ``secrets`` files, and ``points``, a file) until it dies there; the points
        that it came by."""
        assert not self._live({**job, "at": point})
        seen: Counter[str] = Counter()
        points = []
        for kind in Path(str(job["points"])).read_text().splitlines():
            seen[kind] += 1
            points.append((kind, seen[kind]))
        return points

    def _live(self, job: dict[str, object]) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in {SURVIVED, -signal.SIGKILL}
        return code == SURVIVED


def ready(job: dict[str, object]) -> Callable[[], object]:
    """What is left of one job when its documents are read and containerd has been asked."""
    if "undo" in job:
        return partial(undo, Path(str(job["undo"])), force=bool(job.get("force", True)))
    if "prepare" in job:
        return partial(apply_intent, intend_preparation(load_document(NodeLayout, Path(str(job["prepare"])))))
    if "agent" in job:
        place = Place(Path(str(job["layout"])), Path(str(job["secrets"])))
        return Agent(place, say=lambda line: sys.audit(APPLIED, line)).run
    layout = load_document(NodeLayout, Path(str(job["layout"])))
    secrets = load_document(NodeSecrets, Path(str(job["secrets"])))
    now = job.get("now")
    moment = float(now) if isinstance(now, int | float) else None
    return partial(apply_intent, intend(layout, secrets, force=bool(job.get("force"))), now=moment)


def writes(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether something is opened that may become another file."""
    return event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)


def die_at(point: Point, points: Path) -> None:
    """Install the hook of an agent, and have it hear of programs."""
    seen: Counter[str] = Counter()
    kinds = EVENTS | {APPLIED, *(f"{when} {name}" for _, name in CALLS for when in ("before", "after"))}
    log = os.open(points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    for owner, name in CALLS:
        setattr(owner, name, announced(name, getattr(owner, name)))

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in kinds or writes(event, arguments):
            seen[event] += 1
            os.write(log, f"{event}\n".encode())
            if (event, seen[event]) == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def announced(name: str, call: Callable[..., object]) -> Callable[..., object]:
    """The same, with an event before it and one after it."""

    def wrapped(*arguments: object, **named: object) -> object:
        sys.audit(f"before {name}")
        answer = call(*arguments, **named)
        sys.audit(f"after {name}")
        return answer

    return wrapped


def die_before(number: int) -> None:
    """Install the hook."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS or writes(event, arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """Jobs from standard input, exit codes to standard output."""
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                work = ready(job)
                if "at" in job:
                    die_at((job["at"][0], job["at"][1]), Path(job["points"]))
                elif job["until"] is not None:
                    die_before(job["until"])
                work()
            except (SluiceError, OSError) as error:
                print(error, file=sys.stderr)
                os._exit(FAILED)
            os._exit(SURVIVED)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

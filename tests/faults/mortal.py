"""A process that changes a node's files and dies by SIGKILL just before the n-th of them.

``python -m faults.mortal`` reads one job a line (JSON) and forks a child for each, so that a death costs milliseconds.
The child kills itself from an audit hook (PEP 578), which the interpreter calls before it opens for writing, renames,
removes or makes anything: what is on disk then is what a kill between two operations leaves.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import SluiceError
from sluice.node.apply import apply_intent, intend, undo
from sluice.node.prepare import intend_preparation

EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"})
SURVIVED, FAILED = 0, 3
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "until": until}) + "\n")
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
    layout = load_document(NodeLayout, Path(str(job["layout"])))
    secrets = load_document(NodeSecrets, Path(str(job["secrets"])))
    now = job.get("now")
    moment = float(now) if isinstance(now, int | float) else None
    return partial(apply_intent, intend(layout, secrets, force=bool(job.get("force"))), now=moment)


def die_before(number: int) -> None:
    """Install the hook."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if event in EVENTS or writes:
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
                if job["until"] is not None:
                    die_before(job["until"])
                work()
            except (SluiceError, OSError) as error:
                print(error, file=sys.stderr)
                os._exit(FAILED)
            os._exit(SURVIVED)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

"""Power loss on a node: SIGKILL leaves the page cache alone, so the order of an apply's system calls is looked at."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from node.given import node_layout, node_secrets, paths_below

from faults.syscalls import STRACE, Call, parse
from sluice.cluster.documents import dump_document

WAIT_S = 30.0


def traced(root: Path) -> list[Call]:
    """The calls of an apply of files alone (no balancer, so that no other program's are among them)."""
    layout = node_layout(paths=paths_below(root).model_dump(), sources=("replicas",))
    for name, document in (("layout", layout), ("secrets", node_secrets())):
        (root / name).write_bytes(dump_document(document))
    trace = root / "trace"
    words = ("node", "apply", "--layout", str(root / "layout"), "--secrets", str(root / "secrets"))
    subprocess.run([*STRACE, str(trace), sys.executable, "-m", "sluice", *words], check=True, capture_output=True)
    deadline = time.monotonic() + WAIT_S
    while "+++ exited with 0 +++" not in trace.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return parse(trace.read_text())


def synced(calls: list[Call], path: str, after: int, before: int) -> bool:
    """Whether a file or directory was flushed between two lines of the trace."""
    return any(one.name == "fsync" and one.path == path and after <= one.begin and one.end <= before for one in calls)


@pytest.mark.skipif(shutil.which("strace") is None, reason="traces an apply")
def test_every_step_is_on_disk_before_the_next(tmp_path: Path) -> None:
    """The journal is on disk before the first change; each file before its rename; each directory that was made, and
    all that a hosts.toml names, before the first hosts.toml; and all of it before the journal goes."""
    calls = traced(tmp_path)
    renames = [one for one in calls if one.name.startswith("rename")]
    target = {one.names[-1]: one for one in renames}
    journal = next(one for path, one in target.items() if path.endswith("/journal.json"))
    state = journal.names[-1].rpartition("/")[0]
    first_hosts = min(one.begin for path, one in target.items() if path.endswith("/hosts.toml"))
    named = [path for path in target if "/ca/" in path or "/secrets/" in path]
    assert (len(named) > 3, journal) == (True, renames[0])
    for one in renames:
        assert synced(calls, one.names[0], 0, one.begin), f"{one.names[-1]} was renamed before it was on disk"
    for path in named:
        assert synced(calls, path.rpartition("/")[0], target[path].end, first_hosts), f"{path} is named too early"
    etc = str(tmp_path / "etc")
    made = [one for one in calls if one.name.startswith("mkdir") and one.names[0].startswith(etc)]
    assert made
    assert synced(calls, state, journal.end, min(one.begin for one in made))
    for one in made:
        assert synced(calls, one.names[0].rpartition("/")[0], one.end, first_hosts), f"{one.names[0]} is not on disk"
    last = max(one.end for one in renames)
    for path, one in target.items():
        assert synced(calls, path.rpartition("/")[0], one.end, sys.maxsize), f"the rename to {path} is not on disk"
    assert synced(calls, state, last, sys.maxsize)

"""A HAProxy that lives and answers nothing: it is ended and started anew, and nothing else is."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import needs_haproxy, wait_until
from node.running import Node, alive, kill
from sluice.cli.app import run
from sluice.node.balancer import LIVE_PATH
from sluice.node.haproxy import ANSWER_S, PID_FILE

pytestmark = needs_haproxy
SERVED_S = 60.0
"""At most; on a machine with nothing else to do it takes about fifteen."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with one_node(tmp_path) as node:
        yield node


@contextlib.contextmanager
def one_node(root: Path) -> Iterator[Node]:
    with Node(root) as one:
        one.want(one.layout())
        yield one


def apply(node: Node) -> None:
    assert run(["node", "apply", "--layout", str(node.document), "--secrets", str(node.secrets)]) == 0


def processes(node: Node) -> tuple[int, int]:
    """Master and worker."""
    master = node.balancer.state().pid
    assert master is not None
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return master, int(worker)


def answers(node: Node) -> tuple[int, int]:
    """What the balancer answers by itself, and to a runtime; its replicas are not there."""
    return get(node.metrics_port, LIVE_PATH), get(node.port, "/v2/")


def get(port: int, path: str) -> int:
    """The status; 0 where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def await_service(node: Node) -> None:
    deadline = time.monotonic() + SERVED_S
    while answers(node) != (200, 503):
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("whole", [True, False], ids=["master and worker", "worker"])
def test_a_hung_balancer_is_started_anew(node: Node, whole: bool) -> None:
    """Stopped under a running agent, it is gone with its workers and another one serves; log and status say so."""
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    before = processes(node)
    await_service(node)
    stop(*(before if whole else before[1:]))
    assert answers(node) == (0, 0)
    await_service(node)
    assert (False, False) == (alive(before[0]), alive(before[1]))
    status = node.wait_for(lambda status: status.balancer is True and bool(status.findings), "the finding")
    assert [("the balancer", False)] == [(one.where, one.blocking) for one in status.findings]
    assert "answered nothing" in status.findings[0].what
    assert "the balancer answered nothing for 4 s, and was killed with its workers" in node.log.read_text()


def test_a_stopped_worker_without_a_master_is_ended(node: Node) -> None:
    """A worker that was stopped does not notice its master's end, and holds the port: it goes, too."""
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    master, worker = processes(node)
    stop(worker)
    kill(master)
    await_service(node)
    assert not alive(worker)


def test_a_layout_is_applied_over_a_hung_balancer(node: Node) -> None:
    """Apply does not wait for what never answers: it starts another with the new configuration."""
    apply(node)
    before = processes(node)
    stop(*before)
    node.want(node.layout(version=2, replicas=node.replicas[:1]))
    apply(node)
    assert ["master-1"] == [one.name for one in node.balancer.state().replicas]
    assert (False, False) == (alive(before[0]), alive(before[1]))


def test_one_that_only_pauses_is_left_alone(node: Node) -> None:
    """It leaves a question unanswered and answers the next one: its processes stay."""
    apply(node)
    before = processes(node)
    stop(*before)
    waking = threading.Timer(ANSWER_S + 1, wake, before)
    waking.start()
    assert "unchanged" == node.balancer.ensure()
    waking.join()
    assert before == processes(node)


def stop(*pids: int) -> None:
    """SIGSTOP; on return each thread stands still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(states(pid) == {"T"} for pid in pids), "all have stopped")


def states(pid: int) -> set[str]:
    """Of its threads, in a letter each."""
    return {one.read_text().rpartition(")")[2].split()[0] for one in Path(f"/proc/{pid}/task").glob("*/stat")}


def wake(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_only_its_own_processes_are_ended(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another node's balancer, and whoever has the number that was written down, live on."""
    with one_node(tmp_path_factory.mktemp("other")) as other:
        apply(node)
        apply(other)
        theirs = processes(other)
        stranger = subprocess.Popen(["sleep", "600"])
        try:
            ours = processes(node)
            stop(*ours)
            Path(node.balancer.directory, PID_FILE).write_text(f"{stranger.pid}\n")
            assert node.balancer.ensure() == "started"
            assert (theirs, True) == (processes(other), alive(stranger.pid))
            assert (False, False) == (alive(ours[0]), alive(ours[1]))
        finally:
            stranger.kill()
            stranger.wait()


def test_stop_ends_stopped_processes(node: Node) -> None:
    """After stop nothing is left that holds the port, whatever state the processes were in."""
    apply(node)
    master, worker = processes(node)
    stop(master, worker)
    node.balancer.stop()
    assert (False, False) == (alive(master), alive(worker))
    apply(node)
    master, worker = processes(node)
    stop(worker)
    kill(master)
    wait_until(lambda: not alive(master), "the master's end")
    node.balancer.stop()
    assert not alive(worker)

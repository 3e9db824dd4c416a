"""What wakes an agent that would sleep for an hour, and what a clock that is put back does to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.balanced import wait_until
from node.running import Node
from node.tree import put
from sluice.cluster.status import NodeStatus
from sluice.node import agent as module
from sluice.node.agent import Agent, Place
from sluice.node.record import STATUS

FAR_S = 3600.0
TICKS_BEFORE = 3  # it looks by itself until it follows every directory: the third look is the last for an hour


class Clock:
    """Which counts how often it is asked: once for each look."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return time.time()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as one:
        one.want(one.layout(sources=("replicas",)))
        yield one


@pytest.fixture
def asleep(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent of the node that has done all it has to, and has nothing due for an hour."""
    for name in ("LOOK_S", "RESCAN_S", "HEARTBEAT_S"):
        monkeypatch.setattr(module, name, FAR_S)
    monkeypatch.setattr(module, "POLL_S", 0.1)
    clock = Clock()
    with running(Agent(Place(node.document, node.secrets, node.state), print, clock)) as one:
        node.applied(1)
        wait_until(lambda: clock.asked >= TICKS_BEFORE, "its long sleep")
        yield one


@contextlib.contextmanager
def running(agent: Agent) -> Iterator[Agent]:
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield agent
    finally:
        agent.stop()
        thread.join()


def another_layout(node: Node) -> None:
    aside = node.document.with_suffix(".aside")
    aside.write_bytes(node.document.read_bytes().replace(b'"version": 1', b'"version": 2'))
    aside.rename(node.document)


def bad_layout(node: Node) -> None:
    put(node.document, b"version: 2\nnode: [")


def bad_secrets(node: Node) -> None:
    put(node.secrets, b"certificate: [")


def another_runtime(node: Node) -> None:
    (node.root / "etc/containerd/config.toml").write_text("version = 2\n")


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (another_layout, lambda status: status.version == 2),
        (bad_layout, lambda status: "neither YAML nor JSON" in (status.error or "")),
        (bad_secrets, lambda status: "secrets.yaml" in (status.error or "")),
        (another_runtime, lambda status: "config_path" in str(status.findings)),
        (lambda node: node.document.unlink(), lambda status: "does not exist" in (status.error or "")),
    ],
    ids=["another layout", "a bad layout", "bad secrets", "another runtime's configuration", "no layout"],
)
def test_a_change_of_its_files_wakes_it(
    node: Node, asleep: Agent, change: Callable[[Node], None], seen: Callable[[NodeStatus], bool]
) -> None:
    """It acts on it long before anything is due."""
    change(node)
    node.wait_for(seen, "what follows from the change")


@pytest.fixture
def now() -> list[float]:
    """The time of ``ticking``: to be set."""
    return [time.time()]


@pytest.fixture
def ticking(node: Node, now: list[float]) -> Iterator[Agent]:
    """An agent of the node that has looked once."""
    with contextlib.closing(Agent(Place(node.document, node.secrets, node.state), print, lambda: now[0])) as one:
        one.tick()
        yield one


def test_a_clock_that_is_put_back_delays_nothing(node: Node, ticking: Agent, now: list[float]) -> None:
    """What was due at a time that is far ahead now is looked at all the same."""
    file = node.hosts / "docker.io" / "hosts.toml"
    file.unlink()
    now[0] += module.POLL_S
    ticking.tick()
    seen = [file.exists()]
    now[0] -= FAR_S
    ticking.tick()
    assert [False, True] == [*seen, file.exists()]


def test_it_shows_that_it_lives(node: Node, ticking: Agent, now: list[float]) -> None:
    """With nothing new, the document stays as it is, and its age is that of the last sign of life."""
    written = (node.state / STATUS).read_bytes()
    now[0] += module.HEARTBEAT_S
    ticking.tick()
    assert (status := node.status()) is not None
    assert written == (node.state / STATUS).read_bytes()
    assert now[0] == pytest.approx(status.time, abs=1e-3)


def test_a_status_that_was_removed_is_written_anew(node: Node, ticking: Agent, now: list[float]) -> None:
    """By the next sign of life at the latest."""
    (node.state / STATUS).unlink()
    now[0] += module.HEARTBEAT_S
    ticking.tick()
    assert (status := node.status()) is not None
    assert status.version == 1
    assert now[0] == pytest.approx(status.time, abs=1e-3)

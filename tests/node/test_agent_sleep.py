"""What wakes an agent that would sleep for an hour, and what a clock that is put back does to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.balanced import wait_until
from node.running import Node, watches
from node.tree import put
from sluice.cluster.status import NodeStatus
from sluice.node import agent as module
from sluice.node.agent import Agent, Place
from sluice.node.record import STATUS

FAR_S = 3600.0
LOOKS_BEFORE = 3  # it looks by itself until it follows every file: the third look is the last for an hour


class Clock:
    """Which counts how often it is asked: once at the beginning, once for each look, and once for each pause."""

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
        wait_until(lambda: clock.asked >= 1 + 2 * LOOKS_BEFORE, "its long sleep")
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


@pytest.mark.parametrize(
    "tamper",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name("old").replace(path) if path.with_name("old").write_text("{}") else None,
    ],
    ids=["removed", "emptied", "an old one in its place"],
)
def test_a_status_that_is_not_its_own_is_written_anew(
    node: Node, ticking: Agent, now: list[float], tamper: Callable[[Path], object]
) -> None:
    """By the next sign of life at the latest: it never vouches for what somebody else has made of it."""
    written = (node.state / STATUS).read_bytes()
    tamper(node.state / STATUS)
    now[0] += module.HEARTBEAT_S
    ticking.tick()
    assert (status := node.status()) is not None
    assert (1, True) == (status.version, len((node.state / STATUS).read_bytes()) == len(written))
    assert now[0] == pytest.approx(status.time, abs=1e-3)


def test_a_status_that_could_not_be_written_is_written_later(
    node: Node, ticking: Agent, now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """The old one is not said to hold meanwhile, and the reason is said once."""
    before = (node.state / STATUS).stat().st_mtime_ns
    aside = node.root / "aside"
    (node.state / STATUS).rename(aside)
    (node.state / STATUS).mkdir()  # nothing can be renamed over it
    bad_layout(node)
    for _ in range(3):
        now[0] += module.HEARTBEAT_S
        ticking.tick()
    said = capsys.readouterr().out
    (node.state / STATUS).rmdir()
    aside.rename(node.state / STATUS)
    seen = [(node.state / STATUS).stat().st_mtime_ns == before, said.count(f"{node.state / STATUS}")]
    now[0] += module.POLL_S
    ticking.tick()
    assert (status := node.status()) is not None
    assert [True, 1, True] == [*seen, "neither YAML nor JSON" in (status.error or "")]


def test_a_clock_that_is_put_back_is_not_the_time_of_the_last_word(
    node: Node, ticking: Agent, now: list[float]
) -> None:
    """A status from a time that is to come is written anew: else nobody would notice an agent's silence for as long."""
    now[0] -= FAR_S
    ticking.tick()
    assert now[0] == NodeStatus.model_validate_json((node.state / STATUS).read_bytes()).time


@pytest.mark.parametrize(("runtimes", "watched"), [(("containerd",), 2), (("cri-o",), 1)])
def test_only_what_is_managed_is_followed(
    node: Node, now: list[float], runtimes: tuple[str, ...], watched: int
) -> None:
    """The documents' directory, and containerd's where containerd is among the runtimes."""
    node.want(node.layout(sources=("replicas",), runtimes=runtimes))
    with contextlib.closing(Agent(Place(node.document, node.secrets, node.state), print, lambda: now[0])) as one:
        one.tick()
        now[0] += module.POLL_S
        one.tick()
        assert [watched] == watches()

"""A node's agent, killed between any two file operations and around each call of HAProxy; the next agent ends it.

At every such instant what containerd reads is whole, names only files that exist, and sends nobody to a balancer that
does not run. The agent that starts afterwards, over whatever was left behind, makes the node what its layout says:
its files, and a HAProxy that runs on exactly the configuration that is on disk.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from node.balanced import needs_haproxy
from node.running import Node
from node.tree import Fact, snapshot

from faults.mortal import APPLIED, Mortal, Point
from faults.test_node_crash import check_hosts, check_whole
from sluice.cli.app import run
from sluice.cluster.layout import NodeLayout
from sluice.node.balancer import CONFIG_NAME
from sluice.node.haproxy import PID_FILE, Balancer, config_digest
from sluice.node.haproxy_processes import find_processes
from sluice.node.record import JOURNAL

pytestmark = needs_haproxy
SAMPLE = 3
"""File operations at which the short form kills, in each of the three changes; never the same ones. Around programs it
always does."""
AROUND_RELOAD = frozenset(
    {"before check", "after check", "before communicate", "before reload", "after reload", APPLIED}
)
MEMORY = Path("/dev/shm")


class Scene:
    """A node that goes from one layout (or none) to another, as often as it takes."""

    def __init__(self, node: Node, mortal: Mortal, long: bool) -> None:
        self.node = node
        self.mortal = mortal
        self._long = long
        self._saved = node.root.with_name("saved")
        self.before: NodeLayout | None = None
        self.old: dict[str, Fact] = {}
        self.new: dict[str, Fact] = {}
        self.configs: set[str | None] = {None}

    def contents(self) -> dict[str, Fact]:
        """What others read: every file outside our memory."""
        etc = snapshot(self.node.root / "etc")
        return {path: fact[:2] for path, fact in etc.items() if fact[0] == "file"}

    def given(self, before: NodeLayout | None, after: NodeLayout) -> list[Point]:
        """Learn both states, and save the first; the points of the way between them that are to be tried."""
        self.before = before
        if before is not None:
            self.node.want(before)
            self.run_agent(before)
            self.configs = {self.node.balancer.state().config}
            self.node.balancer.stop()
        self.old = self.contents()
        subprocess.run(["cp", "-a", str(self.node.root), str(self._saved)], check=True)
        self.load(after)
        points = self.kill((APPLIED, 1))
        self.load(after)
        points = self.kill(("os.rename", 1 + sum(kind == "os.rename" for kind, _ in points)))  # to its status in place
        self.run_agent(after)
        self.new = self.contents()
        self.configs.add(self.node.balancer.state().config)
        assert self.old != self.new
        return self._chosen(points)

    def _chosen(self, points: list[Point]) -> list[Point]:
        points = [*points[: points.index((APPLIED, 1)) + 1], points[-1]]
        files = [point for point in points if point[0].startswith(("os.", "open", "shutil."))]
        assert len(files) > 20, "nothing was tried"
        few = {*(files if self._long else random.sample(files, SAMPLE)), points[-1]}
        again = {point for point in points if point[0].endswith("signal") and point[1] > 1}  # which may do without
        return [point for point in points if point in few or point not in {*files, *again}]

    def load(self, after: NodeLayout) -> None:
        """The first state again, with its balancer running, and the second wanted."""
        self.node.balancer.stop()
        shutil.rmtree(self.node.root)
        subprocess.run(["cp", "-a", str(self._saved), str(self.node.root)], check=True)
        if self.before is not None and "balancer" in self.before.sources:
            self.node.balancer.ensure()
        self.node.want(after)

    def kill(self, point: Point) -> list[Point]:
        """Have an agent die there."""
        node = self.node
        documents = {"layout": str(node.document), "secrets": str(node.secrets)}
        return self.mortal.die_at({"agent": True, **documents, "points": f"{node.root}.points"}, point)

    def run_agent(self, layout: NodeLayout) -> None:
        """The real one, over what there is, until it says that this layout is applied and all is well; then it ends."""
        node = self.node
        node.start()
        balancer = True if "balancer" in layout.sources else None
        status = node.wait_for(lambda one: (one.version, one.balancer) == (layout.version, balancer), "the layout")
        assert (None, ()) == (status.error, status.findings)
        assert 0 == node.end()
        assert "Traceback" not in node.log.read_text()


@pytest.fixture(scope="module")
def mortal() -> Iterator[Mortal]:
    with Mortal() as one:
        yield one


@pytest.fixture
def scene(mortal: Mortal, long_form: bool) -> Iterator[Scene]:
    """In memory: what SIGKILL leaves is the page cache, and a disk's flushes would only take time."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        root = Path(directory) / "node"
        with Node(root) as node:
            yield Scene(node, mortal, long_form)


def leftovers(root: Path) -> list[str]:
    """What only a process in the middle of its work has."""
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.suffix == ".tmp" or path.name == JOURNAL]


def masters(balancer: Balancer) -> int:
    """How many HAProxy run on this configuration, workers left out."""
    marks = frozenset({(b"-p", PID_FILE.encode()), (b"-f", os.fsencode(balancer.directory / CONFIG_NAME))})
    found = find_processes(marks, balancer.directory) if balancer.directory.exists() else []
    return sum(parent(pid) not in found for pid in found)


def parent(pid: int) -> int:
    """Of a process, as proc(5) has it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sends_to_balancer(node: Node) -> bool:
    """Whether containerd is told to ask it."""
    address = f"127.0.0.1:{node.port}".encode()
    return any(address in path.read_bytes() for path in node.hosts.rglob("hosts.toml"))


def check_instant(scene: Scene, point: Point) -> None:
    """What holds wherever it died."""
    node = scene.node
    check_hosts(node.hosts)
    check_whole(scene.contents(), scene.old, scene.new)
    config = node.balancer.state().config
    assert config in scene.configs, f"{point}: {config}"
    assert config is not None or not sends_to_balancer(node), f"{point}: containerd is sent where nobody listens"


def check_status(scene: Scene, point: Point, capsys: pytest.CaptureFixture[str], *says: str) -> None:
    """``sluice node status`` has an answer while nobody is there: one of these, and that there is a journal."""
    code = run(["node", "status", "--state", str(scene.node.state)])
    out, err = capsys.readouterr()
    assert (code in {0, 1}, "") == (True, err), point
    assert "agent     does not run" in out, point
    assert any(one in out for one in says), (point, out)
    assert (scene.node.state / JOURNAL).exists() == ("was interrupted" in out), (point, out)


def check_ended(scene: Scene, layout: NodeLayout, point: Point) -> None:
    """The next agent leaves the node as the layout has it, and nothing lying around."""
    scene.run_agent(layout)
    assert scene.new == scene.contents(), point
    assert [] == leftovers(scene.node.root), point
    balancer = scene.node.balancer
    wanted = config_digest(balancer.config.read_bytes()) if "balancer" in layout.sources else None
    assert wanted == balancer.state().config, point
    assert (wanted is not None) == masters(balancer), point


def check_all(
    scene: Scene, capsys: pytest.CaptureFixture[str], before: NodeLayout | None, after: NodeLayout, *says: str
) -> set[str]:
    """Kill it everywhere on this way; the kinds of points that there were."""
    points = scene.given(before, after)
    for point in points:
        scene.load(after)
        scene.kill(point)
        check_instant(scene, point)
        check_status(scene, point, capsys, *says)
        check_ended(scene, after, point)
    return {kind for kind, _ in points}


def test_a_killed_first_apply_is_finished(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """On a fresh node nobody is sent to a balancer before it runs, and the next agent has all of it applied."""
    says = ("nothing has been applied here yet", "version   1\n")
    kinds = check_all(scene, capsys, None, scene.node.layout(), *says)
    assert kinds >= AROUND_RELOAD


def test_a_killed_upgrade_is_finished(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """To other registries and another configuration of the balancer: one of the two runs at every instant, and after
    the next agent's start the new one."""
    after = scene.node.layout(
        version=2, registries=({"name": "docker.io"}, {"name": "ghcr.io"}), replicas=scene.node.replicas[:1]
    )
    kinds = check_all(scene, capsys, scene.node.layout(), after, "version   1\n", "version   2\n")
    assert kinds >= AROUND_RELOAD
    assert 2 == len(scene.configs - {None})


def test_a_killed_farewell_to_the_balancer_is_finished(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """To a layout without one: it runs until nobody is sent to it, and has ended after the next agent's start."""
    after = scene.node.layout(version=2, sources=("replicas",))
    kinds = check_all(scene, capsys, scene.node.layout(), after, "version   1\n", "version   2\n")
    assert kinds >= {"before stop", "after stop"}
    assert None in scene.configs

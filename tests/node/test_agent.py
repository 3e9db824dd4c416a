"""The agent as a process: what it follows, what it refuses, what outlives it, and what it says about itself."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.given import authority, node_secrets
from node.running import WAIT_S, Node, alive, kill, resident_mib
from node.tree import put, snapshot
from sluice.errors import NodeRefused
from sluice.node.apply import intend, plan_intent, undo

RESIDENT_MIB_MAX = 60


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as one:
        yield one


def test_it_follows_the_layout(node: Node) -> None:
    """It waits for the document, applies each version that comes, and says which one is applied."""
    node.start()
    node.wait_for(lambda status: "does not exist" in (status.error or ""), "the missing layout in the status")
    node.want(node.layout())
    assert (1, 1, "proxy", None) == (
        (status := node.applied(1)).version,
        status.wanted,
        status.mode,
        status.error,
    )
    assert {"docker.io", "quay.io", "registry.sluice.internal_5001_"} == {one.name for one in node.hosts.iterdir()}
    node.want(node.layout(version=2, registries=({"name": "ghcr.io"},)))
    node.applied(2)
    assert {"ghcr.io", "registry.sluice.internal_5001_"} == {one.name for one in node.hosts.iterdir()}
    assert node.end() == 0
    assert "Traceback" not in node.log.read_text()


def test_it_runs_the_balancer_which_outlives_it(node: Node) -> None:
    """The balancer starts with the first layout, is reloaded with another, runs on when the agent is killed or ends,
    is found by the next agent, and stops when the layout has none."""
    node.want(node.layout())
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    pid = node.balancer.state().pid
    node.end(signal.SIGKILL)
    assert (True, True) == (alive(pid), node.balancer.state().running)
    node.start()
    node.want(node.layout(version=2, replicas=node.replicas[:1]))
    node.applied(2)
    assert (pid, ["master-1"]) == ((state := node.balancer.state()).pid, [one.name for one in state.replicas])
    node.want(node.layout(version=3, sources=("replicas",)))
    node.applied(3)
    node.wait_for(lambda status: status.balancer is None, "no balancer")
    assert not alive(pid)


def test_a_dead_balancer_is_started_again(node: Node) -> None:
    """Whoever killed it: within seconds it answers again, with the same configuration."""
    node.want(node.layout())
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    before = node.balancer.state()
    kill(before.pid)
    deadline = time.monotonic() + WAIT_S
    while (state := node.balancer.state()).pid in {None, before.pid} or not state.running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert before.config == state.config


def test_a_bad_layout_changes_nothing(node: Node) -> None:
    """Whatever is wrong with a new document, the old state stands, the status says why, and a good one is taken."""
    node.want(node.layout())
    node.start()
    node.applied(1)
    before = snapshot(node.root / "etc")
    for raw, why in (
        (b"version: 2\nnode: [", "is neither YAML nor JSON"),
        (b"version: 2\nnode: worker-1\nmode: proxy\n", "sources is empty"),
        (b"version: 2\nnode: worker-1\nmode: proxy\nvirtual: '$(reboot)'\n", "virtual"),
        (b"version: 2\nregistries: &a [*a]\n", "contains itself"),
        (b'{"version": ' + b"[" * 900 + b"]" * 900 + b"}", "version ([[[["),
    ):
        put(node.document, raw)
        status = node.wait_for(lambda status, why=why: why in (status.error or ""), why)  # type: ignore[misc]
        assert (1, False) == (status.version, status.healthy)
        assert before == snapshot(node.root / "etc")
    node.want(node.layout(version=3))
    assert node.applied(3).error is None


def test_a_foreign_file_is_a_finding(node: Node) -> None:
    """What stands in the way is named with its remedy; once it is gone, SIGHUP has it applied at once."""
    foreign = put(node.hosts / "docker.io" / "hosts.toml", b"server = 'https://theirs'\n")
    node.want(node.layout())
    node.start()
    status = node.wait_for(lambda status: bool(status.findings), "the finding")
    assert [(str(foreign), True)] == [(one.where, one.blocking) for one in status.findings]
    assert "move it away" in status.findings[0].remedy
    assert ["docker.io"] == [one.name for one in node.hosts.iterdir()]
    foreign.unlink()
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    assert node.applied(1).findings == ()


def test_it_starts_from_the_last_good_layout(node: Node) -> None:
    """With neither layout nor secrets to read, a node that was applied once is put right and its balancer started."""
    node.want(node.layout(version=5))
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    node.end()
    node.balancer.stop()
    (node.hosts / "docker.io" / "hosts.toml").unlink()
    (node.state / "status.json").unlink()
    node.document.unlink()
    node.secrets.unlink()
    node.start()
    status = node.wait_for(lambda status: status.balancer is True, "the balancer")
    assert (5, None) == (status.version, status.wanted)
    assert f"{node.document} does not exist" in (status.error or "")
    assert plan_intent(intend(node.layout(version=5), node_secrets())).is_empty


def test_its_state_may_have_another_name(node: Node) -> None:
    """A relative path, or one by a symbolic link, is the layout's own where it leads to the same directory."""
    (node.root / "link").symlink_to("var/lib")
    for version, name in enumerate(("var/lib/sluice/node", "link/sluice/node"), 1):
        node.want(node.layout(version=version))
        node.start(Path(name))
        assert node.applied(version).error is None
        node.end()
    node.balancer.stop()
    undo(node.state)
    assert not (node.root / "var").exists()


def test_it_names_dead_replicas_and_since_when(node: Node) -> None:
    """Replicas that nothing listens for are down, since about now, and that moment stays the same."""
    node.want(node.layout())
    before = time.time()
    node.start()
    status = node.wait_for(lambda status: len(status.replicas) == 2, "both replicas")
    status = node.wait_for(lambda status: not any(one.up for one in status.replicas), "both down")
    assert ["master-1", "master-2"] == [one.name for one in status.replicas]
    assert not status.healthy
    for one in status.replicas:
        assert before - 5 < one.since < time.time() + 1
        assert one.reason
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    time.sleep(4)
    later = node.status()
    assert later is not None
    assert [one.since for one in status.replicas] == [one.since for one in later.replicas]


def test_preflight_is_part_of_the_status(node: Node) -> None:
    """A containerd that does not read what is written for it is a finding with its remedy."""
    (node.root / "etc/containerd/config.toml").write_text("version = 2\n")
    node.want(node.layout())
    node.start()
    status = node.wait_for(lambda status: bool(status.findings), "the finding")
    assert ["does not set config_path"] == [one.what for one in status.findings]
    assert "sluice node prepare" in status.findings[0].remedy


def test_there_is_one_agent_and_no_undo_under_it(node: Node) -> None:
    """A second agent is told who is there, and undo waits until it is stopped; then it leaves no trace."""
    before = snapshot(node.root / "etc")
    node.want(node.layout())
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    second = subprocess.run(node.command(), check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert second.returncode == 1
    assert "an agent (sluice node run) keeps this node" in second.stderr
    with pytest.raises(NodeRefused, match="stop it first"):
        undo(node.state)
    node.end()
    node.balancer.stop()
    undo(node.state)
    assert before == snapshot(node.root / "etc")
    assert not (node.root / "var").exists()


def test_it_is_small(node: Node) -> None:
    """With 50 mirrored registries, agent memory stays below the 60 MiB that are promised."""
    names = [{"name": f"r{number}.example"} for number in range(50)]
    node.want(node.layout(registries=names, authorities=authority()[0]))
    node.start()
    node.wait_for(lambda status: status.balancer is True, "the balancer")
    assert node.process is not None
    assert resident_mib(node.process.pid) <= RESIDENT_MIB_MAX

"""``sluice node status``: the present view, never an older one, and what nobody else looks at where no agent lives."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node.balanced import Replica, needs_haproxy, wait_until
from node.given import authority
from node.running import WAIT_S, Node
from node.test_node_commands import LEGACY
from node.tree import put
from sluice.cli.app import run
from sluice.cluster.documents import dump_document
from sluice.cluster.layout import NodeSecrets
from sluice.node.apply import agent_lives, agent_locked
from sluice.node.record import STATUS
from sluice.pki.authority import open_authority
from sluice.pki.leaf import issue_client
from sluice.pki.material import client_authority, client_certificate

pytestmark = needs_haproxy
Ask = Callable[[], tuple[int, dict[str, Any]]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as one:
        yield one


@pytest.fixture
def replica(node: Node) -> Iterator[Replica]:
    """One that takes the node's certificate, and the node's only one; the layout that names it is wanted."""
    folder, now = node.root / "pki", datetime.now(UTC)
    folder.mkdir()
    leaf = client_certificate(client_authority(folder, now), "worker-1", now)
    one = Replica("master-1", node.root)
    with one.server:
        node.replicas = [{"name": one.name, "host": "127.0.0.1", "port": one.nodes_port}]
        secrets = NodeSecrets(certificate=leaf.chain_pem.decode(), key=leaf.key_pem.decode())
        node.want(node.layout(authorities=one.server.ca.read_text()), secrets)
        yield one


@pytest.fixture
def ask(node: Node, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Exit code and document."""

    def asked() -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = run(["node", "status", "--state", str(node.state), "--output", "json"])
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return code, found

    return asked


def apply(node: Node) -> int:
    return run(["node", "apply", "--layout", str(node.document), "--secrets", str(node.secrets)])


def test_health_is_that_of_what_is_shown(node: Node, replica: Replica, ask: Ask) -> None:
    """An agent that has died called the node healthy; with its only replica gone since, it is not, from when that went,
    and the command ends with 1."""
    node.start()
    node.wait_for(lambda status: status.healthy, "health")
    node.end(signal.SIGKILL)
    assert (0, True) == ((asked := ask())[0], asked[1]["healthy"])
    before = time.time()
    replica.server.kill()
    wait_until(lambda: not ask()[1]["replicas"][0]["up"], "the replica is seen as down")
    code, found = ask()
    assert (1, False, True) == (code, found["healthy"], node.status().healthy)  # type: ignore[union-attr]
    assert before - 2 < found["since"] < time.time()


def test_replicas_stay_named_without_a_balancer(
    node: Node, replica: Replica, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was known last is said to be that; nobody can take it for what is."""
    node.start()
    node.wait_for(lambda status: status.healthy, "health")
    node.end()
    node.balancer.stop()
    code, found = ask()
    (one,) = found["replicas"]
    assert (1, False, False) == (code, found["healthy"], found["balancer"])
    assert ("master-1", None) == (one["name"], one["up"])
    assert one["reason"] == "the balancer does not answer; it was up before"
    assert run(["node", "status", "--state", str(node.state)]) == 1
    out = capsys.readouterr().out
    assert ("balancer  DOES NOT ANSWER" in out, "unknown" in out) == (True, True)


def test_a_node_without_an_agent_may_be_well(node: Node, replica: Replica, ask: Ask) -> None:
    """Applied by hand and served, it is healthy, also where no agent has ever written a word; and what was applied by
    hand since an agent died with a complaint is what counts."""
    assert apply(node) == 0
    wait_until(lambda: ask()[1]["replicas"][0]["up"], "the replica is seen")
    assert (0, None, None) == ((asked := ask())[0], asked[1]["error"], asked[1]["agent"])
    node.start()
    node.wait_for(lambda status: status.healthy, "health")
    put(node.document, b"version: 2\nnode: [")
    node.wait_for(lambda status: status.error is not None, "the complaint")
    node.end(signal.SIGKILL)
    assert ask()[0] == 1
    node.document.write_bytes(dump_document(node.layout(version=3, authorities=replica.server.ca.read_text())))
    assert apply(node) == 0
    wait_until(lambda: ask()[1]["replicas"][0]["up"] is True, "the replica is seen")
    assert (0, 3, None) == ((asked := ask())[0], asked[1]["version"], asked[1]["error"])


def test_runtimes_are_looked_at_where_no_agent_is(node: Node, ask: Ask) -> None:
    """What keeps containerd from reading what was written is named by status itself."""
    config = put(node.root / "etc/containerd/config.toml", LEGACY.encode())
    node.want(node.layout())
    assert apply(node) == 0
    code, found = ask()
    assert (1, [(str(config), True)] * 2) == (code, [(one["where"], one["blocking"]) for one in found["findings"]])
    assert "does not set config_path" in [one["what"] for one in found["findings"]]


@pytest.mark.parametrize(
    ("age_days", "said", "blocking"),
    [(0, None, None), (61, "ends on ", False), (91, "ended on ", True)],
    ids=["new", "due", "over"],
)
def test_the_certificate_of_a_node_ages(
    node: Node, ask: Ask, capsys: pytest.CaptureFixture[str], age_days: int, said: str | None, blocking: bool | None
) -> None:
    """A certificate that is due is a finding with its last day and what to do; once it is over it blocks. With and
    without an agent, and already in plan."""
    made_at = datetime.now(UTC) - timedelta(days=age_days)
    leaf = issue_client(open_authority(node.root / "pki", "ca", "nodes", made_at), "worker-1", made_at)
    node.want(node.layout(), NodeSecrets(certificate=leaf.chain_pem.decode(), key=leaf.key_pem.decode()))
    until = leaf.not_after.strftime("%Y-%m-%d %H:%M:%SZ")
    wanted = [] if said is None else [(f"{said}{until}", blocking)]
    assert run(["node", "plan", "--layout", str(node.document), "--secrets", str(node.secrets)]) == 0
    assert bool(wanted) == (f"sluice pki issue DIRECTORY node {node.layout().node}" in capsys.readouterr().err)
    assert apply(node) == 0
    assert wanted == certificates(node, ask()[1])
    node.start()
    node.wait_for(lambda status: status.agent is not None and status.balancer is True, "the agent")
    assert wanted == certificates(node, ask()[1])


def certificates(node: Node, status: dict[str, Any]) -> list[tuple[str, bool]]:
    """What is said about files of secrets, but for whose it is and what that means."""
    folder = node.layout().paths.secrets
    found = [one for one in status["findings"] if one["where"].startswith(f"{folder}/")]
    return [(one["what"].removeprefix("is this node's certificate and ").partition(": no ")[0], one["blocking"])
            for one in found]  # fmt: skip


def test_a_number_that_is_used_again_is_no_agent(node: Node, ask: Ask) -> None:
    """An agent runs while it holds its lock; another process that has its number is none."""
    node.want(node.layout(authorities=authority()[0]))
    node.start()
    status = node.wait_for(lambda status: status.balancer is True, "the balancer")
    assert status.agent is not None
    assert status.agent == ask()[1]["agent"]
    node.end(signal.SIGKILL)
    other = subprocess.Popen(["sleep", "600"])
    try:
        taken = status.model_copy(update={"agent": other.pid})
        (node.state / STATUS).write_bytes(dump_document(taken))
        assert ask()[1]["agent"] is None
    finally:
        other.kill()
        other.wait()


def test_asking_for_an_agent_keeps_none_from_starting(tmp_path: Path) -> None:
    """Whoever asks holds the lock for an instant: however many do, an agent gets it, and they see it then."""
    stop, asked = threading.Event(), threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            agent_lives(tmp_path)
            asked.set()

    asking = [threading.Thread(target=keep_asking) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        assert asked.wait(WAIT_S)
        for _ in range(100):
            with agent_locked(tmp_path):
                assert agent_lives(tmp_path)
    finally:
        stop.set()
        for one in asking:
            one.join()
    assert not agent_lives(tmp_path)

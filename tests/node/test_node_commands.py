"""``sluice node``: what the commands print, where, and how they end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.balanced import needs_haproxy
from node.running import Node, alive
from node.tree import put, snapshot
from sluice.cli.app import run
from sluice.cluster.layout import Paths
from sluice.node.apply import adopt_state
from sluice.node.record import LAYOUT

CRI = 'plugins."io.containerd.grpc.v1.cri"'
LEGACY = f'version = 2\n[{CRI}.registry.mirrors."docker.io"]\nendpoint = ["https://mirror.example"]\n'


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as one:
        one.want(one.layout())
        yield one


def documents(node: Node) -> list[str]:
    return ["--layout", str(node.document), "--secrets", str(node.secrets)]


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, object], str]:
    """Standard output as JSON, and standard error."""
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert isinstance(found, dict)
    return found, err


def test_plan_prints_a_diff_and_changes_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """People get the diff, programs every operation; nothing is written by either."""
    before = snapshot(node.root)
    assert run(["node", "plan", *documents(node)]) == 0
    out, err = capsys.readouterr()
    assert (f"+++ {node.hosts}/docker.io/hosts.toml" in out, "PRIVATE KEY" in out, err) == (True, False, "")
    assert run(["node", "plan", *documents(node), "--output", "json"]) == 0
    found, _ = printed(capsys)
    operations = found["operations"]
    assert isinstance(operations, list)
    assert {"do": "write", "path": f"{node.hosts}/docker.io/hosts.toml", "effect": "created"} in operations
    assert before == snapshot(node.root)


def test_apply_status_and_undo(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Apply starts the balancer too, is idempotent, status shows what stands, and undo ends everything."""
    before = snapshot(node.root)
    assert run(["node", "apply", *documents(node)]) == 0
    assert "version 1 is applied: " in capsys.readouterr().out
    pid = node.balancer.state().pid
    assert run(["node", "apply", *documents(node)]) == 0
    assert "nothing had to change" in capsys.readouterr().out
    assert (pid, 0) == (node.balancer.state().pid, run(["node", "plan", *documents(node)]))
    assert capsys.readouterr().out == "nothing to do\n"
    assert run(["node", "status", "--layout", str(node.document)]) in {0, 1}  # until its replicas are known to be down
    out = capsys.readouterr().out
    for line in ("version   1", "agent     does not run", "balancer  runs", "master-1  127.0.0.1:"):
        assert line in out
    assert run(["node", "undo", "--layout", str(node.document), "--dry-run"]) == 0
    assert f"--- {node.hosts}/docker.io/hosts.toml" in capsys.readouterr().out
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert (False, before) == (node.balancer.state().running, snapshot(node.root))
    capsys.readouterr()
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert f"nothing of Sluice is remembered in {node.state}, and nothing was changed" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_undo_where_nothing_is_remembered(
    node: Node, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    """A directory named by mistake, there or not: undo says that nothing of Sluice is in it, and touches nothing, not
    even what has a name like ours."""
    assert run(["node", "apply", *documents(node)]) == 0
    put(node.root / "typo" / "balancer" / "theirs", b"")
    put(node.root / "typo" / ".theirs.tmp", b"")
    before = snapshot(node.root)
    for name in ("typo", "nowhere"):
        capsys.readouterr()
        assert run(["node", "undo", "--state", str(node.root / name), *flags]) == 0
        out = capsys.readouterr().out
        assert (True, False) == (
            f"nothing of Sluice is remembered in {node.root / name}, " in out,
            "as it was before" in out,
        )
    assert before == snapshot(node.root)


def test_a_balancer_that_has_just_started_takes_another_layout(node: Node) -> None:
    """One apply on the heels of another: the balancer is reloaded, and undo right after a start ends it gently."""
    for version in range(2, 6):
        replicas = node.replicas[: version % 2 + 1]
        node.want(node.layout(version=version, replicas=replicas))
        assert run(["node", "apply", *documents(node)]) == 0
        assert [one["name"] for one in replicas] == [one.name for one in node.balancer.state().replicas]
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert node.balancer.state().pid is None


def test_what_is_in_the_way_is_said(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan and apply end with 1 and name path and remedy; force goes on, also for the applies after it."""
    put(node.hosts / "docker.io" / "hosts.toml", b"server = 'https://theirs'\n")
    put(node.hosts / "_default" / "hosts.toml", b"")
    before = snapshot(node.root)
    assert run(["node", "plan", *documents(node)]) == 1
    assert f"refused: {node.hosts}/docker.io/hosts.toml is there already" in capsys.readouterr().err
    assert run(["node", "apply", *documents(node)]) == 1
    err = capsys.readouterr().err
    assert f"sluice: nothing was changed: {node.hosts}/docker.io/hosts.toml" in err
    assert before == snapshot(node.root)
    assert run(["node", "apply", *documents(node), "--force"]) == 0
    assert run(["node", "apply", *documents(node)]) == 0
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert before == snapshot(node.root)


def test_wrong_documents_are_wrong_usage(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A layout or secrets that cannot be read end with 2, and what is wrong is named without a secret's value."""
    put(node.secrets, b'{"certificate": "x", "key": "very private"}')
    assert run(["node", "apply", *documents(node)]) == 2
    err = capsys.readouterr().err
    assert (True, False) == ("certificate" in err, "very private" in err)
    assert run(["node", "apply", "--layout", str(node.root / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["node", "apply", "--layout", str(node.document)]) == 2
    assert "asks replicas, which want its certificate" in capsys.readouterr().err


def test_a_balancer_that_cannot_start_changes_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Where another program has its port, HAProxy's words are passed on with the port and what to do, and everything is
    as before, the state directory too: also with an agent's memory there, which undo takes away."""
    before = snapshot(node.root)
    with socket.create_server(("127.0.0.1", node.port)):  # also where a connection of before is in TIME_WAIT
        assert run(["node", "apply", *documents(node)]) == 2
        err = capsys.readouterr().err
        assert before == snapshot(node.root)
        adopt_state(node.state)
        assert run(["node", "apply", *documents(node)]) == 2
    assert "haproxy does not start: " in err
    assert f"another program listens on port {node.port}: stop it" in err
    assert "balancer.port" in err
    assert ["record.json"] == [path.name for path in node.state.iterdir()]
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert before == snapshot(node.root)


def test_findings_are_said_and_stop_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Where containerd will read nothing of what is written, plan and apply say so with the way on, for people and for
    programs, mark what is blocking, and do their work all the same."""
    config = put(node.root / "etc/containerd/config.toml", LEGACY.encode())
    told = (
        f"blocking: {config} does not set config_path: run sluice node prepare, which sets it",
        f"blocking: {config} has {CRI}.registry.mirrors for docker.io: remove it",
        "images do not come from where the layout says until what is blocking is mended",
    )
    for command in ("plan", "apply"):
        assert run(["node", command, *documents(node)]) == 0
        err = capsys.readouterr().err
        assert [True] * len(told) == [line in err for line in told]
        assert run(["node", command, *documents(node), "--output", "json"]) == 0
        found = printed(capsys)[0]["findings"]
        assert isinstance(found, list)
        assert [(str(config), True)] * 2 == [(one["where"], one["blocking"]) for one in found]
    assert (node.hosts / "docker.io" / "hosts.toml").exists()


def test_undo_takes_no_other_node_back_for_a_mistyped_layout(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A layout that does not exist says nothing about which memory is meant: it is not the usual one's end."""
    assert run(["node", "apply", *documents(node)]) == 0
    before = snapshot(node.root)
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert run(["node", "undo", "--layout", str(node.root / "layuot.yaml"), *more]) == 2
        err = capsys.readouterr().err
        assert (True, True) == ("layuot.yaml does not exist, and nothing was changed" in err, "--state" in err)
    assert before == snapshot(node.root)
    node.document.unlink()
    assert run(["node", "undo", "--layout", str(node.document), "--state", str(node.state)]) == 0


@needs_haproxy
@pytest.mark.parametrize("content", [b"{", None], ids=["damaged", "lost"])
def test_undo_needs_no_layout(node: Node, capsys: pytest.CaptureFixture[str], content: bytes | None) -> None:
    """Without a copy of what was applied that can be read, everything is taken back and the balancer ends."""
    before = snapshot(node.root / "etc")
    assert run(["node", "apply", *documents(node)]) == 0
    pid = node.balancer.state().pid
    applied = node.state / LAYOUT
    applied.unlink()
    if content is not None:
        applied.write_bytes(content)
    assert (True, 0) == (alive(pid), run(["node", "undo", "--state", str(node.state)]))
    assert (before, False, False) == (snapshot(node.root / "etc"), alive(pid), node.state.exists())
    said = f"{applied} is damaged; it is Sluice's own: remove it, the next apply writes it anew"
    assert (content is not None) == (said in capsys.readouterr().err)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere")])
def test_a_state_that_is_no_directory(
    node: Node, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object]
) -> None:
    """Every command says what stands where a directory is needed, and nothing of a traceback."""
    node.state.parent.mkdir(parents=True)
    make(node.state)
    for command, words in (("apply", 4), ("prepare", 2)):
        capsys.readouterr()
        assert run(["node", command, *documents(node)[:words]]) == 2
        said = capsys.readouterr().err
        assert ("move that away, or name another path" in said, str(node.state) in said) == (True, True), said


def test_a_layout_that_is_wrong_hides_no_state(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """With a layout that cannot be read status and undo look in --state, or in the usual place, and say why."""
    before = snapshot(node.root / "etc")
    assert run(["node", "apply", *documents(node)]) == 0
    put(node.document, b"version: 2\nnode: [")
    place = ["--layout", str(node.document), "--state", str(node.state)]
    capsys.readouterr()
    assert run(["node", "status", *place]) in {0, 1}
    out, err = capsys.readouterr()
    said = f"{node.document} is neither YAML nor JSON"
    assert (True, True, True) == ("version   1" in out, said in err, f"looking in {node.state}" in err)
    assert run(["node", "status", *place[:2]]) in {0, 1}
    assert f"looking in {Paths().state}" in capsys.readouterr().err
    assert run(["node", "undo", *place]) == 0
    assert (before, True) == (snapshot(node.root / "etc"), said in capsys.readouterr().err)


def test_prepare_shows_the_diff_first(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run changes nothing; the real one says that containerd has to restart once; again, nothing is to do. Undo
    says about the restart too."""
    put(node.root / "etc/containerd/config.toml", b"version = 2\n")
    before = snapshot(node.root)
    command = ["node", "prepare", "--layout", str(node.document)]
    assert run([*command, "--dry-run"]) == 0
    assert (f'+config_path = "{node.hosts}"' in capsys.readouterr().err, before) == (True, snapshot(node.root))
    assert run(command) == 0
    assert "it has to restart once" in capsys.readouterr().out
    assert run([*command, "--output", "json"]) == 0
    assert printed(capsys)[0]["operations"] == []
    assert run(["node", "undo", "--state", str(node.state)]) == 0
    assert "; containerd has to restart once: systemctl restart containerd" in capsys.readouterr().out
    assert before == snapshot(node.root)


def test_undo_without_a_preparation_restarts_nothing(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Where prepare was not needed, undo does not ask for a restart."""
    assert run(["node", "apply", *documents(node)]) == 0
    capsys.readouterr()
    assert run(["node", "undo", "--state", str(node.state), "--output", "json"]) == 0
    assert printed(capsys)[0]["restart"] is False


def test_status_of_an_untouched_node(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing was applied, status says so, ends with 1 and changes nothing; its JSON is the agent's document."""
    before = snapshot(node.root)
    assert run(["node", "status", "--state", str(node.state), "--output", "json"]) == 1
    found, _ = printed(capsys)
    assert (None, False, "nothing has been applied here yet") == (found["version"], found["healthy"], found["error"])
    assert before == snapshot(node.root)

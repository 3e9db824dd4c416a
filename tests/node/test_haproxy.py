"""HAProxy as a process: it outlives its starter, refuses what is bad and goes on with what was good."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import NAMES, Balanced, balanced, needs_haproxy, noise, wait_until
from sluice.errors import ConfigInvalid
from sluice.node.balancer import render_balancer
from sluice.node.haproxy import QUESTION, Balancer
from sluice.node.haproxy_state import BalancerState, fingerprint
from sluice.testing.server import free_port

pytestmark = needs_haproxy
BLOB = noise(16 << 20)
ASKED = 120
START = """
import sys
from pathlib import Path
from sluice.node.haproxy import QUESTION, Balancer
print(Balancer(Path(sys.argv[1]), Path(sys.argv[2])).ensure())
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balanced(tmp_path_factory.mktemp("balanced")) as scene:
        yield scene


@pytest.fixture
def scene(whole: Balanced) -> Balanced:
    whole.apply(whole.layout())
    whole.wait_for(master_1=True, master_2=True, master_3=True)
    return whole


def answers(scene: Balanced) -> int:
    with scene.get("/v2/") as body:
        return body.status


def test_same_configuration_changes_nothing(scene: Balanced) -> None:
    """Asked again with the same file, nothing is started, reloaded or forgotten; another object finds it again."""
    before = scene.balancer.state()
    again = Balancer(scene.balancer.config, scene.balancer.directory)
    assert again.ensure() == "unchanged"
    assert (before.pid, before.config) == (again.state().pid, again.state().config)


def test_what_a_killed_process_had_begun_to_write_goes(scene: Balanced) -> None:
    """A copy and a state of servers that were never whole are removed by whoever is next; another's file is not."""
    torn, theirs = (".haproxy.cfg.0a.tmp", ".servers.state.0b.tmp"), ".theirs.0c.tmp"
    for name in (*torn, theirs):
        (scene.balancer.directory / name).write_bytes(b"half a fi")
    assert "unchanged" == scene.balancer.ensure()
    assert [theirs] == [path.name for path in scene.balancer.directory.glob(".*")]
    (scene.balancer.directory / theirs).unlink()


def test_outlives_who_started_it(scene: Balanced) -> None:
    """Started by a process that ends, it runs on, and its master is nobody's child."""
    scene.balancer.stop()
    assert scene.balancer.state() == BalancerState(None, None)
    where = [str(scene.balancer.config), str(scene.balancer.directory)]
    done = subprocess.run([sys.executable, "-c", START, *where], capture_output=True, text=True, check=True)
    assert done.stdout == "started\n"
    scene.wait_for(master_1=True)
    assert answers(scene) == 200
    pid = scene.balancer.state().pid
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] != str(os.getpid())


def test_bad_configuration_is_refused(scene: Balanced) -> None:
    """What HAProxy refuses is not loaded; what ran runs on, and is what a new start takes."""
    before = scene.balancer.state()
    good = scene.balancer.config.read_bytes()
    scene.balancer.config.write_bytes(good.replace(b"mode http", b"mode htp").replace(b"nodes", b"knots"))
    for restart in (False, True):
        if restart:
            scene.balancer.stop()
        scene.balancer.config.write_bytes(_renamed(good).replace(b"mode http", b"mode htp"))
        with pytest.raises(ConfigInvalid, match="unknown proxy mode 'htp'"):
            scene.balancer.ensure()
        assert before.config == scene.balancer.state().config
        assert answers(scene) == 200


def _renamed(content: bytes) -> bytes:
    """Another digest in it, as any other configuration would have."""
    before = content.partition(b"description ")[2].split()[0]
    return content.replace(before, b"0123456789abcdef")


def test_port_that_is_taken(scene: Balanced) -> None:
    """A configuration that HAProxy cannot run on is given up, with a guess at the reason; the one before serves on."""
    before = scene.balancer.state()
    taken = scene.replicas["master-1"].nodes_port
    with pytest.raises(ConfigInvalid, match="is the port taken"):
        scene.apply(scene.layout(balancer={"port": taken, "metrics_port": scene.metrics_port}))
    assert before.config == scene.balancer.state().config
    assert answers(scene) == 200
    assert scene.apply(scene.layout()) == "unchanged"


def test_killed_and_started_again(scene: Balanced) -> None:
    """After a SIGKILL of the master nothing is left over, and the next call starts it on the same port."""
    before = scene.balancer.state().pid
    assert before is not None
    os.kill(before, 9)
    wait_until(lambda: not scene.balancer.state().running, "the worker ends with its master")
    assert scene.balancer.ensure() == "started"
    assert answers(scene) == 200
    assert scene.balancer.state().pid != before


def test_replica_of_another_authority(scene: Balanced) -> None:
    """A replica that no trusted CA vouches for is down, and the state says why; the others serve."""
    trusted = "".join(scene.replicas[name].server.ca.read_text() for name in NAMES[1:])
    scene.apply(scene.layout(authorities=trusted))
    scene.wait_for(master_1=False, master_2=True, master_3=True)
    assert "SSL" in scene.seen()["master-1"].reason
    assert answers(scene) == 200


def test_replica_by_another_name(scene: Balanced) -> None:
    """A certificate of the right CA for another name is not enough."""
    scene.apply(scene.layout(virtual="other.example:5001"))
    scene.wait_for(master_1=False, master_2=False, master_3=False)
    assert answers(scene) == 503


def test_node_with_another_certificate(scene: Balanced, tmp_path: Path) -> None:
    """With a client certificate of a CA that replicas do not know, all of them are down, and the state says why."""
    scene.apply(scene.layout(), pem=Balanced.certificate(tmp_path))
    scene.wait_for(master_1=False, master_2=False, master_3=False)
    assert all("SSL" in one.reason or "closed" in one.reason for one in scene.seen().values())
    assert answers(scene) == 503


def test_stop_lets_streams_finish(scene: Balanced) -> None:
    """Stopped with time to drain, it takes no new connection and ends when its last stream has."""
    (digest,) = {one.push("up/a", BLOB) for one in scene.replicas.values()}
    with scene.get(f"/v2/up/a/blobs/{digest}") as body:
        body.read(100_000)
        stopping = threading.Thread(target=scene.balancer.stop, kwargs={"drain_s": 60.0})
        stopping.start()
        wait_until(lambda: not _accepts(scene.port), "no new connection")
        assert stopping.is_alive()
        assert body.read() == BLOB
    stopping.join()
    assert scene.balancer.state() == BalancerState(None, None)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_at_once(scene: Balanced) -> None:
    """Of two processes that see to it at the same time, one starts it and the other finds it running."""
    scene.balancer.stop()
    command = [sys.executable, "-c", START, str(scene.balancer.config), str(scene.balancer.directory)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert ["started\n", "unchanged\n"] == sorted(one.communicate()[0] for one in both)
    assert answers(scene) == 200


def test_another_balancer_is_news(scene: Balanced) -> None:
    """Whoever compares answers sees another configuration, another process with the same one, and that none answers."""
    scene.apply(scene.layout("master-1", "master-2"))
    scene.wait_for(master_1=True, master_2=True)
    fewer = scene.balancer.state()
    seen = [scene.balancer.is_as(fewer)]
    scene.apply(scene.layout("master-1", "master-2", balancer={"port": scene.port, "metrics_port": free_port()}))
    scene.wait_for(master_1=True, master_2=True)
    seen.append(scene.balancer.is_as(fewer))
    another = scene.balancer.state()
    scene.balancer.stop()
    seen.append(scene.balancer.is_as(another))
    scene.balancer.ensure()
    scene.wait_for(master_1=True, master_2=True)
    seen.append(scene.balancer.is_as(another))
    assert [True, False, False, False, False] == [*seen, scene.balancer.is_as(BalancerState(None, None))]


def test_a_check_that_is_going_on_is_no_news(scene: Balanced) -> None:
    """Of a replica that says nothing HAProxy tells, by turns, that a check runs and how the last one ended."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        replica = {"name": "silent", "host": "127.0.0.1", "port": silent.getsockname()[1]}
        scene.apply(scene.layout(replicas=[replica]))
        scene.wait_for(silent=False)
        before = scene.balancer.state()
        seen = []
        for _ in range(ASKED):
            seen.append((scene.balancer.is_as(before), "* L" in scene.balancer.ask(QUESTION)))
            time.sleep(0.01)
    assert ({True}, {True, False}) == ({same for same, _ in seen}, {running for _, running in seen})


@pytest.mark.parametrize(
    ("status", "times_down", "check", "code", "same"),
    [
        ("UP", "0", "* L7OK", "0", True),
        ("UP", "1", "L7OK", "200", False),
        ("UP 1/2", "0", "L7OK", "200", False),
        ("DOWN", "0", "L7OK", "200", False),
        ("UP", "0", "L7STS", "200", False),
    ],
)
def test_what_of_a_replica_is_news(status: str, times_down: str, check: str, code: str, same: bool) -> None:
    """How it is, how its last check ended, and whether it was down meanwhile; not that a check runs."""
    assert same == (
        fingerprint(answer("UP", "0", "L7OK", "200")) == fingerprint(answer(status, times_down, check, code))
    )


def answer(status: str, times_down: str, check: str, code: str) -> str:
    cells = [""] * 80
    for column, cell in ((1, "master-1_10.0.0.11:5003"), (17, status), (22, times_down), (36, check), (37, code)):
        cells[column] = cell
    return f"Pid: 3\ndescription: 875afca\n\n# pxname\n{','.join(cells)}\n"


def test_the_same_number_may_be_another_process() -> None:
    """Inside of a pod HAProxy has the same PID at each start: that it started at another time is news."""
    first, again = (f"Name: HAProxy\nPid: 3\nStart_time_sec: {at}\ndescription: 875afca\n\n# pxname\n" for at in (1, 2))
    assert (True, False) == (fingerprint(first) == fingerprint(first), fingerprint(first) == fingerprint(again))


def test_events(scene: Balanced) -> None:
    """What happened to replicas can be read afterwards, with the reason and the time."""
    trusted = "".join(scene.replicas[name].server.ca.read_text() for name in NAMES[1:])
    scene.apply(scene.layout(authorities=trusted))
    scene.wait_for(master_1=False)
    (line,) = (one for one in scene.balancer.log().splitlines() if "replicas/master-1" in one)
    assert " is DOWN, reason: " in line


def test_memory(scene: Balanced) -> None:
    """Master and worker together stay below what is promised for a node: 30 MiB resident."""
    pid = scene.balancer.state().pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in [str(pid), *children]]
    assert len(pages) == 2
    assert sum(pages) * os.sysconf("SC_PAGESIZE") <= 30 << 20


def test_layout_without_a_balancer(scene: Balanced) -> None:
    """A node whose runtimes go to the replicas themselves gets no file for HAProxy."""
    assert render_balancer(scene.layout(sources=("replicas",)), str(scene.pem)) == {}

"""HAProxy as the kubelet runs it: told of another configuration, it goes on without a break, or says that it cannot."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import NAMES, Balanced, needs_haproxy, noise, wait_until
from node.podded import IMAGE, Pod
from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.balancer import render_balancer
from sluice.node.haproxy import Balancer
from sluice.node.haproxy_pod import PodBalancer
from sluice.pki.durable import write_durably
from sluice.testing.client import digest_of

pytestmark = needs_haproxy
BLOB = noise(16 << 20)
SMALL = noise(100_000, 1)
RELOADS = 5


class Podded(Balanced):
    """The same replicas, before which a pod's HAProxy stands; ``told`` is what speaks to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.balancer = Balancer(root / "etc" / "haproxy.cfg", root / "balancer")
        self.told = PodBalancer(self.balancer)

    def layout(self, *names: str, **changes: object) -> NodeLayout:
        return super().layout(*names, **{"runner": "static-pods", "balancer_image": IMAGE} | changes)

    def write(self, layout: NodeLayout) -> None:
        """The layout's files, each whole at every instant, and nobody is told."""
        for path, file in render_balancer(layout, str(self.pem)).items():
            write_durably(Path(path), file.content)

    def config(self) -> str | None:
        return self.balancer.state().config

    def answers(self) -> int:
        with self.get("/v2/") as body:
            return body.status


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podded]:
    with Podded(tmp_path_factory.mktemp("podded")) as scene:
        for replica in scene.replicas.values():
            for blob in (BLOB, SMALL):
                replica.push("up/a", blob)
        yield scene


@pytest.fixture
def scene(whole: Podded) -> Podded:
    whole.write(whole.layout())
    return whole


@pytest.fixture
def pod(scene: Podded) -> Iterator[Pod]:
    with Pod(scene.layout()) as one:
        scene.wait_for(master_1=True, master_2=True, master_3=True)
        yield one


def path_of(blob: bytes) -> str:
    return f"/v2/up/a/blobs/{digest_of(blob)}"


def test_reload_cuts_nothing(scene: Podded, pod: Pod) -> None:
    """A slow stream outlives reloads that take its replica away, small requests never fail, and the new replica serves
    what is asked afterwards; the pod's first process is the same one."""
    statuses: list[int] = []
    stop = threading.Event()
    asking = threading.Thread(target=_ask_on, args=(scene, stop, statuses))
    with scene.get(path_of(BLOB)) as body:
        body.read(100_000)
        sender = scene.busy()
        (other, *_) = (name for name in NAMES if name != sender)
        asking.start()
        try:
            done = []
            for number in range(RELOADS):
                scene.write(scene.layout(other, balancer=_ports(scene, nodes=200 + number)))
                done.append(scene.told.take_over())
        finally:
            stop.set()
            asking.join()
        assert ["reloaded"] * RELOADS == done
        assert {200} == set(statuses)
        assert [other] == list(scene.seen())
        before = scene.seen()[other].sent
        with scene.get(path_of(SMALL)) as small:
            assert small.read() == SMALL
        assert scene.seen()[other].sent >= before + len(SMALL)
        assert body.read() == BLOB
    assert pod.log.count("New worker") == RELOADS + 1
    wait_until(lambda: len(pod.workers) == 1, "the replaced workers end")


def _ports(scene: Podded, **changes: int) -> dict[str, int]:
    return {"port": scene.port, "metrics_port": scene.metrics_port} | changes


def _ask_on(scene: Podded, stop: threading.Event, statuses: list[int]) -> None:
    while not stop.is_set():
        with scene.get(path_of(SMALL)) as body:
            statuses.append(body.status if body.read() == SMALL else 0)


def test_same_configuration_changes_nothing(scene: Podded, pod: Pod) -> None:
    """Where it runs on what the file says, nobody is told anything."""
    before = pod.workers
    assert ("unchanged", "unchanged") == (scene.told.take_over(), scene.told.settle())
    assert before == pod.workers


def test_nobody_to_tell(scene: Podded) -> None:
    """Before a pod's first start, and beside the sockets of one that was killed, there is nothing to do: the next start
    reads the file that is there then."""
    folder = scene.balancer.directory
    fresh = PodBalancer(Balancer(scene.balancer.config, scene.root / "none"))
    assert ("absent", "absent", False) == (fresh.take_over(), fresh.settle(), (scene.root / "none").exists())
    with Pod(scene.layout()) as first:
        scene.wait_for(master_1=True)
        first.kill()
        assert {"admin.sock", "master.sock"} <= {one.name for one in folder.iterdir()}
        scene.write(scene.layout("master-2"))
        assert ("absent", "absent") == (scene.told.take_over(), scene.told.settle())
        first.start()
        scene.wait_for(master_2=True)
        assert ("unchanged", {"master-2"}) == (scene.told.take_over(), set(scene.seen()))


def test_told_while_it_starts(scene: Podded) -> None:
    """Whenever it is told during its start, it ends up on the new file."""
    for delay_ms in range(0, 200, 20):
        scene.write(scene.layout())
        with Pod(scene.layout()):
            time.sleep(delay_ms / 1000)
            scene.write(scene.layout("master-2"))
            scene.told.settle()
            wait_until(lambda: scene.config() is not None, "it answers")
            scene.told.settle()
            assert ["master-2"] == list(scene.seen())


@pytest.mark.parametrize("fault", ["a mode that there is none of", "a port that is taken"])
def test_what_it_refuses(scene: Podded, pod: Pod, fault: str) -> None:
    """A configuration that HAProxy does not read, or cannot run on, is an error at once that names the file and where
    to look; the worker before serves on, each time that it is tried, and takes a good one later."""
    before, workers = scene.config(), pod.workers
    if fault == "a port that is taken":
        taken = scene.replicas["master-1"].nodes_port
        scene.write(scene.layout(balancer={"port": taken, "metrics_port": scene.metrics_port}))
    else:
        scene.write(scene.layout("master-2"))
        scene.balancer.config.write_bytes(scene.balancer.config.read_bytes().replace(b"mode http", b"mode htp"))
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(ConfigInvalid, match=r"refuses the configuration in .*/haproxy\.cfg, .*\(crictl logs"):
            scene.told.take_over()
        assert time.monotonic() - started < 5
        assert (before, workers, 200) == (scene.config(), pod.workers, scene.answers())
    scene.write(scene.layout("master-3"))
    assert ("reloaded", ["master-3"]) == (scene.told.take_over(), list(scene.seen()))


def test_a_master_that_does_not_listen(scene: Podded, pod: Pod) -> None:
    """A frozen master is an error that says how to get another one; what its worker serves goes on. Thawed, it takes
    over what it was told, and the next call finds it so or sees to it."""
    os.kill(pod.pid, signal.SIGSTOP)
    scene.write(scene.layout("master-2"))
    with pytest.raises(ConfigInvalid, match=r"did not take .*/haproxy\.cfg over within 10 s, .*\(crictl stopp"):
        scene.told.take_over()
    assert (200, set(NAMES)) == (scene.answers(), set(scene.seen()))
    os.kill(pod.pid, signal.SIGCONT)
    assert scene.told.settle() in {"reloaded", "unchanged"}
    assert ["master-2"] == list(scene.seen())


def test_a_pod_that_has_no_such_socket(scene: Podded) -> None:
    """From a manifest that was written before there was one: an apply, which replaces that, goes on; that it still runs
    on something else is an error with the remedy."""
    old = Pod(
        scene.layout(), lambda words: [word for at, word in enumerate(words) if "-S" not in words[at - 1 : at + 1]]
    )
    with old:
        scene.wait_for(master_1=True)
        (scene.balancer.directory / "master.sock").unlink(missing_ok=True)
        scene.write(scene.layout("master-2"))
        assert scene.told.take_over() == "absent"
        with pytest.raises(ConfigInvalid, match=r"nobody listens on .*/master\.sock; stop its pod \(crictl stopp"):
            scene.told.settle()


def test_what_is_known_of_replicas_outlives_a_reload(scene: Podded, pod: Pod) -> None:
    """A replica that is down stays so, since the same moment; a later start of the pod knows nothing of that."""
    victim = scene.replicas["master-3"].server
    victim.kill()
    try:
        scene.wait_for(master_3=False)
        since = scene.seen()["master-3"].since
        scene.write(scene.layout(balancer=_ports(scene, nodes=300)))
        assert scene.told.take_over() == "reloaded"
        after = scene.seen()["master-3"]
        assert not (scene.balancer.directory / "servers.state").exists()
    finally:
        victim.start()
    assert not after.up
    assert abs(after.since - since) <= 1.1  # HAProxy counts whole seconds
    scene.wait_for(master_3=True)
    assert pod.workers


def test_after_an_agents_own(scene: Podded) -> None:
    """One that an agent runs gives its port to the pod while its last streams end, and leaves the pod its socket."""
    scene.apply(scene.layout(runner="agent"))
    scene.wait_for(master_1=True, master_2=True, master_3=True)
    with scene.get(path_of(BLOB)) as body:
        body.read(100_000)
        stopping = threading.Thread(target=scene.balancer.stop, kwargs={"drain_s": 60.0})
        stopping.start()
        wait_until(lambda: not _accepts(scene.port), "no new connection")
        scene.write(scene.layout("master-2"))
        with Pod(scene.layout()):
            scene.wait_for(master_2=True)
            assert stopping.is_alive()
            assert body.read() == BLOB
            body.close()
            stopping.join()
            assert ("unchanged", ["master-2"]) == (scene.told.take_over(), list(scene.seen()))


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""What passes through a balancer whose replicas are all well, and through its reloads."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.balanced import Balanced, Body, balanced, needs_haproxy, noise, wait_until
from sluice.node.balancer import METRICS_PATH, SPILL_STREAMS
from sluice.testing.client import digest_of

pytestmark = needs_haproxy
BLOB = noise(16 << 20, 1)
SMALL = [noise(2000, seed) for seed in range(30)]
TRANSFERS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balanced(tmp_path_factory.mktemp("balanced")) as scene:
        for replica in scene.replicas.values():
            replica.push("up/a", BLOB)
            replica.push("up/b", BLOB)
            for blob in SMALL:
                replica.push("up/a", blob)
                replica.push("up/b", blob)
        yield scene


@pytest.fixture
def scene(whole: Balanced) -> Balanced:
    """With all three replicas, whatever the test before has changed."""
    whole.apply(whole.layout())
    whole.wait_for(master_1=True, master_2=True, master_3=True)
    return whole


def grown(scene: Balanced, path: str) -> str:
    """Which replica answers a request."""
    before = {name: one.sent for name, one in scene.seen().items()}
    with scene.get(path) as body:
        body.read()
        assert body.status == 200
    wait_until(lambda: sum(one.sent for one in scene.seen().values()) > sum(before.values()), "bytes are counted")
    (name,) = (name for name, one in scene.seen().items() if one.sent > before[name])
    return name


def test_one_digest_one_replica(scene: Balanced) -> None:
    """A digest comes from the same replica in whatever repository it is asked for; different ones use them all."""
    digests = [digest_of(blob) for blob in SMALL]
    found = {repo: [grown(scene, f"/v2/{repo}/blobs/{digest}") for digest in digests] for repo in ("up/a", "up/b")}
    assert found["up/a"] == found["up/b"]
    assert set(found["up/a"]) == set(scene.replicas)


def test_more_than_one_replica_for_a_digest_that_many_want(scene: Balanced) -> None:
    """Up to SPILL_STREAMS requests of one digest stay with its replica; more of them go to the others too."""
    path = f"/v2/up/a/blobs/{digest_of(BLOB)}"
    with contextlib.ExitStack() as stack:
        bodies = [stack.enter_context(scene.get(path)) for _ in range(SPILL_STREAMS)]
        assert [SPILL_STREAMS] == [one.streams for one in scene.seen().values() if one.streams]
        bodies += [stack.enter_context(scene.get(path)) for _ in range(2 * TRANSFERS)]
        assert all(one.streams > 2 for one in scene.seen().values())
        assert all(body.read() == BLOB for body in bodies[:: SPILL_STREAMS // 2])


def test_ranges_and_registry_names_pass(scene: Balanced) -> None:
    """Range and ``?ns=`` reach the replica as they were sent, and bodies come as they are stored."""
    path = f"/v2/up/a/blobs/{digest_of(BLOB)}?ns=registry.example%3A5000"
    with scene.get(path, "Range: bytes=1000-1999", "Accept-Encoding: zstd;q=1.0, gzip;q=0.8") as body:
        assert body.read() == BLOB[1000:2000]
        assert (206, f"bytes 1000-1999/{len(BLOB)}") == (body.status, body.headers["content-range"])
        assert "content-encoding" not in body.headers
    logs = "".join(one.server.log.read_text() for one in scene.replicas.values())
    assert digest_of(BLOB) in logs


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512), b"hello\r\n\r\n"])
def test_garbage_is_answered_in_http(scene: Balanced, garbage: bytes) -> None:
    """A TLS hello gets bytes that begin with HTTP/, by which containerd knows that the port is a plain one."""
    with socket.create_connection(("127.0.0.1", scene.port), timeout=30) as line:
        line.sendall(garbage)
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    assert answer.startswith(b"HTTP/")
    assert answer.split()[1] == b"400"


def test_metrics_on_loopback(scene: Balanced) -> None:
    """Prometheus metrics name every replica and its state; anything else there is a 404."""
    with Body(scene.metrics_port, METRICS_PATH, "Connection: close") as body:
        text = body.read().decode()
        for replica in scene.replicas.values():
            name = f"{replica.name}_127.0.0.1:{replica.nodes_port}"
            assert f'haproxy_server_status{{proxy="replicas",server="{name}",state="UP"}} 1' in text
    found = []
    for path in ("/livez", "/v2/", "/"):
        with Body(scene.metrics_port, path) as body:
            found.append(body.status)
    assert [200, 404, 404] == found


def test_reload_cuts_nothing(scene: Balanced) -> None:
    """Slow transfers outlive a reload, the removal of every replica but one, and their return; so do small requests."""
    path = f"/v2/up/a/blobs/{digest_of(BLOB)}"
    stop = threading.Event()
    statuses: list[int] = []
    asking = threading.Thread(target=_ask_on, args=(scene, stop, statuses))
    with contextlib.ExitStack() as stack:
        bodies = [stack.enter_context(scene.get(path)) for _ in range(TRANSFERS)]
        for body in bodies:
            body.read(100_000)
        before = scene.balancer.state().config
        asking.start()
        try:
            done = [
                scene.apply(scene.layout(balancer=_ports(scene, nodes=200))),
                scene.apply(scene.layout("master-2")),
                scene.apply(scene.layout("master-2", "master-3", "master-1")),
            ]
            assert ["reloaded"] * 3 == done
            assert all(body.read() == BLOB for body in bodies)
        finally:
            stop.set()
            asking.join()
    assert before != scene.balancer.state().config
    assert set(statuses) == {200}


def _ports(scene: Balanced, nodes: int) -> dict[str, int]:
    return {"port": scene.port, "metrics_port": scene.metrics_port, "nodes": nodes}


def _ask_on(scene: Balanced, stop: threading.Event, statuses: list[int]) -> None:
    while not stop.is_set():
        for blob in SMALL:
            with scene.get(f"/v2/up/a/blobs/{digest_of(blob)}") as body:
                statuses.append(body.status if body.read() == blob else 0)


def test_what_is_known_of_replicas_outlives_a_reload(scene: Balanced, tmp_path: Path) -> None:
    """A replica that is down stays so through a reload, since the same moment, and is asked nothing meanwhile."""
    victim = scene.replicas["master-3"].server
    victim.kill()
    scene.wait_for(master_3=False)
    since = scene.seen()["master-3"].since
    scene.apply(scene.layout(balancer=_ports(scene, nodes=300)))
    after = scene.seen()["master-3"]
    victim.start()
    assert not after.up
    assert abs(after.since - since) <= 1.1  # HAProxy counts whole seconds
    scene.wait_for(master_3=True)

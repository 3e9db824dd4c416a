"""The rendered ``hosts.toml`` in the hands of a real containerd, before real registries, in every state of a node."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from node.scene import HUB, NAME, PARTS, PREFIX, VIRTUAL, Scene, needs_parts, scene, write
from node.test_kubelet import REQUEST, ask
from sluice.cluster.layout import NodeLayout
from sluice.errors import PullFailed
from sluice.lab.containerd import ctr_command
from sluice.lab.cri import Auth
from sluice.lab.programs import run_step
from sluice.node.haproxy import Balancer
from sluice.node.hosts import render_hosts
from sluice.node.secret_files import upstream_path
from sluice.testing.server import SluiceServer, free_port

pytestmark = needs_parts
ORDERS = (
    ("balancer", "replicas"),
    ("balancer",),
    ("replicas",),
    ("upstream",),
    ("upstream", "replicas"),
    ("upstream", "replicas", "balancer"),
    ("balancer", "replicas", "upstream"),
)
REWRITES = 200


@pytest.fixture(scope="module")
def plain() -> Iterator[Scene]:
    with scene("plain") as made:
        yield made


@pytest.mark.parametrize("registry", [VIRTUAL, HUB])
@pytest.mark.parametrize("sources", ORDERS, ids="-".join)
def test_every_state_serves(plain: Scene, sources: tuple[str, ...], registry: str) -> None:
    """By tag and by digest, each part from the first source alone: the upstream under its path, or replicas."""
    plain.put(plain.layout(*sources))
    for reference in (":v1", f"@{plain.digest}"):
        givers = ["upstream"] if sources[0] == "upstream" else ["replica-0", "replica-1"]
        given = plain.given_by(partial(plain.pull, f"{registry}/{NAME}{reference}"), *givers)
        if sources[0] == "upstream":
            assert {"upstream": PARTS, "replica-0": 0, "replica-1": 0} == given
        else:
            assert PARTS == given["replica-0"] + given["replica-1"]
        if sources[0] == "replicas":
            assert PARTS == given["replica-0"]


def test_ctr_reads_the_same_files(plain: Scene) -> None:
    """``ctr images pull --hosts-dir`` takes another way through containerd, and finds the image as well."""
    layout = plain.put(plain.layout("upstream", "replicas"))
    reference = f"{VIRTUAL}/{NAME}:v1"
    place = plain.containerd.place
    run_step(ctr_command(place, "images", "pull", "--hosts-dir", layout.paths.containerd_hosts, reference))
    assert reference in run_step(ctr_command(place, "images", "list", "-q")).split()


def test_a_replica_with_an_ipv6_address(plain: Scene) -> None:
    """It stands where every version can read it, and serves when all others are gone."""
    port = free_port()
    door = ["--nodes-listen", f"[::1]:{port}", "--nodes-ca", str(plain.directory / "client-ca.crt")]
    upstream = ["--mode", "proxy", *plain.foreign.flags, "--upstream", f"{plain.foreign.url}/{PREFIX}"]
    with SluiceServer(plain.directory / "six", *upstream, *door) as six:
        replicas = [
            {"name": "cp-5", "host": "127.0.0.1", "port": free_port()},
            {"name": "cp-6", "host": "::1", "port": port},
        ]
        plain.put(plain.layout("replicas", replicas=replicas, authorities=six.ca.read_text(), runtimes=["containerd"]))
        plain.pull(f"{VIRTUAL}/{NAME}:v1")


def test_the_real_registry_is_asked_only_where_that_is_wanted(plain: Scene) -> None:
    """What no source has: with the fallback the registry that bears the name gives it, without nobody does."""
    name = plain.foreign.host
    for fallback in (True, False):
        registry = {"name": name, "remote": {"address": plain.foreign.url}, "fallback": fallback}
        plain.put(plain.layout("replicas", registries=[registry]))
        image = f"{name}/hub/{NAME}:v1"
        if fallback:
            given = plain.given_by(partial(plain.pull, image), "upstream")
            assert PARTS == given["upstream"]
        else:
            with pytest.raises(PullFailed, match="not found"):
                plain.pull(image)


def test_files_are_replaced_during_pulls(plain: Scene) -> None:
    """Two hundred times by rename, from Direct to the middle of a switch and back, while one image after another is
    pulled: none fails."""
    ways = [plain.put(plain.layout(*sources)) for sources in (("upstream", "replicas"), ORDERS[-1])]
    files = [render_hosts(layout, plain.secrets) for layout in ways]
    left = iter(range(REWRITES))

    def rewrite() -> None:
        for count in left:
            write(files[count % 2])

    writer = threading.Thread(target=rewrite)
    pulls = 0
    writer.start()
    while writer.is_alive() or pulls == 0:
        plain.pull(f"{VIRTUAL}/{NAME}:v1")
        pulls += 1
    writer.join()
    assert pulls >= 1
    assert next(left, None) is None


def test_whoever_dies_the_next_one_serves() -> None:
    """When both replicas hold the image, upstream, balancer and replicas go, one after the other; the last one's end
    fails the pull at once."""
    with scene("plain") as there:
        image = f"{VIRTUAL}/{NAME}:v1"
        pull = partial(there.pull, image)
        for at, port in enumerate(there.ports):
            replicas = [{"name": "cp", "host": "127.0.0.1", "port": port}]
            there.put(there.layout("replicas", replicas=replicas))
            there.given_by(pull, f"replica-{at}")
        there.put(there.layout("upstream", "replicas", "balancer"))
        there.foreign.stop()
        assert PARTS == there.given_by(pull, "replica-0")["replica-0"]
        layout = there.put(there.layout("balancer", "replicas", "upstream"))
        Balancer.of(layout).stop()
        assert PARTS == there.given_by(pull, "replica-0")["replica-0"]
        there.replicas[0].kill()
        assert PARTS == there.given_by(pull, "replica-1")["replica-1"]
        there.replicas[1].kill()
        before = time.monotonic()
        with pytest.raises(PullFailed, match="connection refused"):
            there.pull(image)
        assert time.monotonic() - before < 5


@pytest.mark.parametrize("guise", ["tls", "htpasswd", "token"])
def test_direct_mode_before_other_upstreams(guise: str) -> None:
    """Under a path: with a CA of its own; and with Basic or Bearer, where the kubelet's answer opens the upstream, and
    a pull with no login or a user's own goes on to the replicas, which ask for none."""
    with scene(guise) as there:
        layout = there.put(there.layout("upstream", "replicas", registries=[]))
        login = None if guise == "tls" else kubelet_login(layout)
        given = there.given_by(partial(there.pull, f"{VIRTUAL}/{NAME}:v1", login), "upstream")
        assert {"upstream": PARTS, "replica-0": 0, "replica-1": 0} == given
        for auth in [] if guise == "tls" else [None, Auth("somebody", "else")]:
            given = there.given_by(partial(there.pull, f"{VIRTUAL}/{NAME}:v1", auth), "replica-0")
            assert PARTS == given["replica-0"]


def kubelet_login(layout: NodeLayout) -> Auth:
    """What the kubelet hands to the runtime: the exec plugin's answer, by the file that was written."""
    _, said, _ = ask(REQUEST | {"image": f"{VIRTUAL}/{NAME}"}, upstream_path(layout))
    login = json.loads(said)["auth"][VIRTUAL]
    return Auth(login["username"], login["password"])

"""CRI-O's and podman's files, as text and in the hands of skopeo and podman."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from node.given import LOGIN, authority, node_layout, node_secrets
from node.layouts import layouts, secrets
from node.scene import HUB, NAME, PARTS, VIRTUAL, Scene, needs_parts, scene
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.containers_conf import auth_path, registries_path, render_containers
from sluice.node.files import FileSpec
from sluice.node.haproxy import Balancer

CA = authority()[0]
PODMAN = {"runtimes": ["podman"]}
REPLICA_LOGS = ("replica-0", "replica-1")
# docker/reference in containers/image, of whose grammar a location is the beginning.
LOCATION = re.compile(r"(localhost|[a-z0-9.-]*[.][a-z0-9.-]*|[a-z0-9-]+(?=:))(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


def tables_of(layout: NodeLayout, held: NodeSecrets | None = None) -> dict[str, list[dict[str, Any]]]:
    """By prefix, the locations in the order in which they are asked."""
    raw = render_containers(layout, held or node_secrets())[registries_path(layout)].content
    tables = tomllib.loads(raw.decode())["registry"]
    found = {}
    for table in tables:
        mirrors = table.pop("mirror", [])
        found[table.pop("prefix")] = [*mirrors, table]
    return found


BALANCER = {"location": "127.0.0.1:5001", "insecure": True}
REPLICAS = [{"location": "10.0.0.11:5003"}, {"location": "10.0.0.12:5003"}]


@pytest.mark.parametrize(
    ("sources", "locations"),
    [
        (["balancer", "replicas"], [BALANCER, *REPLICAS]),
        (["balancer"], [BALANCER]),
        (["upstream", "replicas"], [{"location": "up.example/team"}, *REPLICAS]),
        (["upstream", "replicas", "balancer"], [{"location": "up.example/team"}, *REPLICAS, BALANCER]),
    ],
)
def test_locations_stand_in_the_order_of_the_sources(sources: list[str], locations: list[dict[str, Any]]) -> None:
    """The last one in the place where the real registry would be."""
    layout = node_layout(sources=sources, upstream={"address": "up.example/team"}, registries=[], **PODMAN)
    assert {"registry.sluice.internal:5001": locations} == tables_of(layout)


@pytest.mark.parametrize(
    ("registry", "locations"),
    [
        ({"name": "docker.io"}, ["10.0.0.11:5003/docker.io"]),
        ({"name": "a.example:5000"}, ["10.0.0.11:5003/a.example_5000"]),
        (
            {"name": "quay.io", "remote": {"address": "q.example:5000/x"}},
            ["q.example:5000/x", "10.0.0.11:5003/quay.io"],
        ),
        ({"name": "quay.io", "remote": {"address": "[::1]:5000"}}, ["10.0.0.11:5003/quay.io"]),
        ({"name": "quay.io", "remote": {"address": "q_q.example"}}, ["10.0.0.11:5003/quay.io"]),
        ({"name": "quay.io", "remote": {"address": "harbor/x"}}, ["harbor:443/x", "10.0.0.11:5003/quay.io"]),
        ({"name": "quay.io", "remote": {"address": "index.docker.io"}}, ["docker.io", "10.0.0.11:5003/quay.io"]),
        ({"name": "quay.io", "fallback": True}, ["10.0.0.11:5003/quay.io", "quay.io"]),
    ],
)
def test_a_mirrored_registry(registry: dict[str, Any], locations: list[str]) -> None:
    """Replicas know it by the path; hosts that cannot be written down are left out; the fallback comes last."""
    changes: dict[str, object] = {
        "sources": ["upstream", "replicas"],
        "upstream": {"address": "up.example"},
        "replicas": [{"name": "m1", "host": "10.0.0.11"}, {"name": "m2", "host": "2001:db8::1"}],
    }
    layout = node_layout(**changes, registries=[registry], **PODMAN)
    assert locations == [one["location"] for one in tables_of(layout)[registry["name"]]]


def test_what_tls_needs_has_a_directory_for_each_host() -> None:
    """CA, certificate and key under the names that the runtimes want, before what makes them look."""
    upstream = {"address": "up.example:5000/team", "authorities": CA}
    hub = {
        "name": "quay.io",
        "remote": {"address": "https://up.example:5000/quay", "authorities": authority("other")[0]},
    }
    layout = node_layout(sources=["upstream", "replicas"], upstream=upstream, registries=[hub], **PODMAN)
    held = node_secrets()
    files = dict(render_containers(layout, held))
    assert not files.pop(registries_path(layout)).early
    expected = {"up.example:5000/ca.crt": FileSpec((CA + authority("other")[0]).encode(), early=True)}
    for replica in ("10.0.0.11:5003", "10.0.0.12:5003"):
        expected[f"{replica}/ca.crt"] = FileSpec(CA.encode(), early=True)
        expected[f"{replica}/client.cert"] = FileSpec(held.certificate.encode(), 0o600, early=True)
        expected[f"{replica}/client.key"] = FileSpec(held.key.encode(), 0o600, early=True)
    assert {f"/etc/containers/certs.d/{name}": spec for name, spec in expected.items()} == files


def test_the_upstreams_login() -> None:
    """In Direct mode and for root alone, for exactly the path that is asked."""
    direct: dict[str, object] = {"sources": ["upstream", "replicas"], "upstream": {"address": "up.example/team"}}
    layout = node_layout(**direct, **PODMAN)
    spec = render_containers(layout, node_secrets(login=True))[auth_path(layout)]
    assert (0o600, True) == (spec.mode, spec.early)
    login = base64.b64encode(f"{LOGIN.user}:{LOGIN.password}".encode()).decode()
    assert {"auths": {"up.example/team": {"auth": login}}} == json.loads(spec.content)
    for other, held in ((layout, node_secrets()), (node_layout(**PODMAN), node_secrets(login=True))):
        assert auth_path(other) not in render_containers(other, held)


@pytest.mark.parametrize("changes", [{"mode": "unmanaged", "sources": [], **PODMAN}, {"runtimes": ["containerd"]}])
def test_nothing_is_written_for_others(changes: dict[str, Any]) -> None:
    """Mode unmanaged touches nothing, and containerd reads other files."""
    assert {} == render_containers(node_layout(**changes), node_secrets())


def test_replicas_need_a_certificate() -> None:
    """Without secrets there is no way to ask the replicas; the balancer needs no file of these runtimes."""
    with pytest.raises(ConfigInvalid, match="node worker-1 asks replicas"):
        render_containers(node_layout(**PODMAN), None)
    assert render_containers(node_layout(sources=["balancer"], **PODMAN), None)


@given(layouts(), secrets())
def test_any_layout_is_said_in_locations_that_can_be_read(layout: NodeLayout, held: NodeSecrets) -> None:
    """One table for each registry; every location has the form that containers/image reads, and none is the real
    registry unless the fallback is wanted."""
    files = render_containers(layout, held)
    if layout.mode == "unmanaged" or not {"cri-o", "podman"} & set(layout.runtimes):
        assert {} == files
        return
    tables = tables_of(layout, held)
    assert [layout.virtual, *(one.name for one in layout.registries)] == list(tables)
    for registry in layout.registries:
        found = [one["location"] for one in tables[registry.name]]
        if registry.fallback:
            assert registry.name == found.pop()
        assert all(LOCATION.fullmatch(one) for one in found)
        remote = registry.remote.parsed.authority if registry.remote else ""
        assert remote == registry.name or registry.name not in found
    assert all(spec.early for path, spec in files.items() if path != registries_path(layout))


@pytest.fixture(scope="module")
def plain() -> Iterator[Scene]:
    with scene("plain") as made:
        yield made


def with_containers(layout: NodeLayout, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program that finds the rendered directory at ``/etc/containers``."""
    rendered = Path(layout.paths.containers)
    (rendered / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    script = 'mount --bind "$0" /etc/containers && exec "$@"'
    whole = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(rendered), *command]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=120)


def copied(layout: NodeLayout, image: str, *options: str) -> str:
    """What skopeo says to copying the image away; empty where it can."""
    to = Path(layout.paths.containers).parent / "copied"
    done = with_containers(layout, "skopeo", "copy", "-q", *options, f"docker://{image}", f"dir:{to}")
    shutil.rmtree(to, ignore_errors=True)
    return done.stderr if done.returncode else ""


def succeed_copying(layout: NodeLayout, image: str, *options: str) -> None:
    assert "" == copied(layout, image, *options)


def sent_by_balancer(layout: NodeLayout) -> int:
    """Bytes, of all replicas together; 0 where none runs."""
    return sum(one.sent for one in Balancer.of(layout).state().replicas)


@needs_parts
@pytest.mark.parametrize("registry", [VIRTUAL, HUB])
@pytest.mark.parametrize(
    ("sources", "givers"),
    [
        (("balancer", "replicas"), REPLICA_LOGS),
        (("balancer", "replicas", "upstream"), REPLICA_LOGS),
        (("replicas",), REPLICA_LOGS[:1]),
        (("upstream",), ("upstream",)),
        (("upstream", "replicas", "balancer"), ("upstream",)),
    ],
    ids="-".join,
)
def test_skopeo_gets_the_image_in_every_state(
    plain: Scene, sources: tuple[str, ...], givers: tuple[str, ...], registry: str
) -> None:
    """By tag and by digest, with the node's certificate and no password: all of it from the first source, through the
    balancer where that is the first. The upstream may give to replicas, which have it from there."""
    layout = plain.put(plain.layout(*sources))
    for reference in (":v1", f"@{plain.digest}"):
        before = sent_by_balancer(layout)
        given = plain.given_by(partial(succeed_copying, layout, f"{registry}/{NAME}{reference}"), *givers)
        assert PARTS == sum(given[name] for name in givers)
        assert {name: 0 for name in REPLICA_LOGS if name not in givers}.items() <= given.items()
        assert (sources[0] == "balancer") == (sent_by_balancer(layout) > before)


@needs_parts
@pytest.mark.skipif(shutil.which("podman") is None, reason="needs podman")
def test_podman_pulls(plain: Scene) -> None:
    """Podman, with storage of its own, as root would pull on a node."""
    layout = plain.put(plain.layout("balancer", "replicas"))
    store = plain.directory / "podman"
    podman = ["podman", "--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", "vfs"]
    done = with_containers(layout, *podman, "pull", "-q", f"{VIRTUAL}/{NAME}:v1")
    assert (0, 65) == (done.returncode, len(done.stdout)), done.stderr


@needs_parts
def test_whoever_is_dead_the_next_one_serves(plain: Scene) -> None:
    """Nobody at the balancer's address, nor at the first replica's: the second replica gives the image; and with
    nobody at all the real registry is not asked."""
    ways = (("balancer", "replicas"), ("replicas",))
    dead = {"name": "cp-5", "host": "127.0.0.1", "port": 9}
    for sources in ways:
        alive = {"name": "cp-0", "host": "127.0.0.1", "port": plain.ports[0]}
        layout = plain.put(plain.layout(*sources, replicas=[dead, alive]))
        Balancer.of(layout).stop()
        assert "" == copied(layout, f"{VIRTUAL}/{NAME}:v1")
        layout = plain.put(plain.layout(*sources, replicas=[dead]))
        Balancer.of(layout).stop()
        complaint = copied(layout, f"{HUB}/{NAME}:v1")
        assert "connection refused" in complaint
        assert f"{HUB}/v2" not in complaint


@needs_parts
@pytest.mark.parametrize("guise", ["tls", "htpasswd", "token"])
def test_direct_mode_before_other_upstreams(guise: str) -> None:
    """With a CA of its own; and with a login from the file, or without one by the replicas."""
    image = f"{VIRTUAL}/{NAME}:v1"
    with scene(guise) as there:
        for sources in (("upstream",), ("upstream", "replicas")):
            layout = there.put(there.layout(*sources, registries=[]))
            authfile = ["--authfile", auth_path(layout)] if guise != "tls" else []
            given = there.given_by(partial(succeed_copying, layout, image, *authfile), "upstream")
            assert {"upstream": PARTS, "replica-0": 0, "replica-1": 0} == given
        if guise != "tls":
            given = there.given_by(partial(succeed_copying, layout, image), "replica-0")
            assert PARTS == given["replica-0"]

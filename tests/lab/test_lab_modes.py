"""Every mode before every kind of upstream: each node pulls by the CRI, by tag and digest, and components can too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import Place, raised
from lab.isolated import needs_lab
from sluice.lab.cri import Runtime, pull
from sluice.lab.laboratory import VIRTUAL
from sluice.lab.parts import PAUSE_IMAGE
from sluice.lab.provision import read_login
from sluice.lab.topology import UPSTREAM_PREFIX

pytestmark = needs_lab
WAYS = (
    ("Proxy", "anonymous", ""),
    ("Proxy", "bearer", UPSTREAM_PREFIX),
    ("Local", "anonymous", ""),
    ("Direct", "anonymous", ""),
    ("Direct", "basic", ""),
    ("Direct", "bearer", UPSTREAM_PREFIX),
)
HELLO = f"{VIRTUAL}/lab/hello"


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(part.replace("/", "-") for part in way if part))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    mode, upstream, path = request.param
    with raised(
        tmp_path_factory.mktemp("lab"), "--mode", mode, "--upstream", upstream, "--upstream-path", path
    ) as made:
        yield made


def digest_of_hello(place: Place) -> str:
    index = json.loads((place.directory / "images" / "lab-hello" / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


@pytest.mark.parametrize("node", ["cp-1", "worker-1"])
def test_every_node_pulls(place: Place, node: str) -> None:
    """By digest and by tag, with what its credential provider says, and it is the same image."""
    digest = digest_of_hello(place)
    by_digest = place.ask("pull", node, f"{HELLO}@{digest}")
    by_tag = place.ask("pull", node, "lab/hello:1")
    assert by_digest["id"] == by_tag["id"]
    with Runtime(place.open().socket(place.open().topology.node(node))) as runtime:
        held = {name for image in runtime.images() for name in image.digests}
    assert f"{HELLO}@{digest}" in held


@pytest.mark.parametrize("node", ["cp-1", "worker-1"])
def test_pause_image_without_credentials(place: Place, node: str) -> None:
    """The sandbox image, which the runtime pulls for itself with no credentials at all."""
    lab = place.open()
    assert pull(lab.socket(lab.topology.node(node)), PAUSE_IMAGE).startswith("sha256:")


def test_component_pulls(place: Place, tmp_path: Path) -> None:
    """skopeo copies the image from the virtual address, without a password."""
    target = f"dir:{tmp_path}/copy"
    copied = place.call("exec", "worker-1", "skopeo", "--insecure-policy", "copy", "-q", f"docker://{HELLO}:1", target)
    assert (0, "") == (copied.code, copied.err)
    assert (tmp_path / "copy" / "manifest.json").exists()


def test_who_served_the_worker(place: Place) -> None:
    """In Direct mode the upstream answers the node itself, and in the others it never hears of one."""
    lab = place.open()
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    said = lab.directory.log("upstream").read_text()
    worker = lab.topology.node("worker-1").address
    asked = [line for line in said.splitlines() if worker in line and "/blobs/" in line and "containerd/" in line]
    assert bool(asked) == (lab.topology.shape.mode == "direct")


def test_password_is_nowhere_but_in_secrets(place: Place) -> None:
    """On a node the upstream's password is in files for root alone, and in none that containerd reads."""
    lab = place.open()
    login = read_login(lab.directory, lab.topology)
    if login is None:
        pytest.skip("this upstream has no password")
    home = lab.directory.machine(lab.topology.node("worker-1"))
    holding = [path for path in home.rglob("*") if path.is_file() and login.password.encode() in path.read_bytes()]
    assert holding
    assert all(path.stat().st_mode & 0o077 == 0 for path in holding)
    assert not any("certs.d" in path.parts or "containerd" in path.parts for path in holding)

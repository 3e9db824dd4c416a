"""Real clients through Proxy mode before real registries, and once more when those have gone.

containerd, skopeo and podman know nothing of a proxy: they ask the one address that they are configured with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.foreign import GUISES, Foreign, foreign_registry
from integration.runtimes import containerd_before, pull_and_run
from integration.test_clients import NAME_IN_CLUSTER, name_of, needs, needs_root, run, storage, trusted
from sluice.lab.images import build_image
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer

__all__ = ["storage"]  # the fixture, which pytest looks for here

pytestmark = [needs_root, needs("docker-registry", "skopeo", "containerd", "ctr", "runc", "busybox")]

IMAGE = "team/demo"
HUB_IMAGE = "library/demo"
ASK_FIRST = ["--cache-tag-fresh-s", "0", "--cache-revalidate", "first"]


@dataclass(frozen=True, slots=True)
class Site:
    """A registry that holds the image under two names, and a Sluice before it that knows it as Docker Hub too."""

    foreign: Foreign
    sluice: SluiceServer
    digest: str


@pytest.fixture(params=GUISES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """In Proxy mode, asking the registry for every tag as long as it is there."""
    digest = build_image(tmp_path / "image", Path(shutil.which("busybox") or ""), "v1")
    with foreign_registry(request.param, tmp_path / "foreign") as foreign:
        for name in (IMAGE, HUB_IMAGE):
            copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", *foreign.skopeo]
            run(*copy, f"oci:{tmp_path / 'image'}:v1", f"docker://{foreign.host}/{name}:v1")
        flags = [*foreign.flags, *ASK_FIRST]
        if request.param == "plain":
            flags += ["--registries", f"docker.io={foreign.url}"]
        with SluiceServer(tmp_path / "data", "--mode", "proxy", *flags) as sluice:
            yield Site(foreign, sluice, digest)


def run_images(site: Site, *images: str) -> None:
    """With a containerd that has nothing: no image, no snapshot."""
    with containerd_before(site.sluice, NAME_IN_CLUSTER, "docker.io") as containerd:
        for image in images:
            assert "every byte came out of Sluice" in pull_and_run(containerd, image)


@needs("podman")
def test_an_image_lives_through_its_upstream(site: Site, storage: list[str], tmp_path: Path) -> None:
    """Pulled once, it pulls and runs by tag and by digest when the registry is gone, for every client alike."""
    names = [f"{NAME_IN_CLUSTER}/{IMAGE}:v1", f"{NAME_IN_CLUSTER}/{IMAGE}@{site.digest}"]
    run_images(site, *names)
    site.foreign.stop()
    run_images(site, *names)
    certs = trusted(site.sluice, tmp_path / "certificates")
    name = name_of(site.sluice, IMAGE)
    inspected = json.loads(run("skopeo", "inspect", "--cert-dir", certs, f"docker://{name}"))
    assert (site.digest, ["v1"]) == (inspected["Digest"], inspected["RepoTags"])
    podman = ["podman", *storage, "--tmpdir", tmp_path / "podman"]
    for image in (name, f"127.0.0.1:{site.sluice.port}/{IMAGE}@{site.digest}"):
        run(*podman, "pull", "-q", "--cert-dir", certs, image)
    client = RegistryClient(site.sluice)
    stale = client.request("GET", f"/v2/{IMAGE}/manifests/v1")
    unknown = client.request("GET", f"/v2/{IMAGE}/manifests/v2")
    client.close()
    assert (200, 'stale; reason="unreachable"') == (stale.status, stale.headers["sluice-cache"])
    assert 502 == unknown.status


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_containerd_pulls_another_registry_by_its_own_name(site: Site, tmp_path: Path) -> None:
    """``docker.io/library/demo`` comes through the address that ``hosts.toml`` names, and is kept apart."""
    run_images(site, f"docker.io/{HUB_IMAGE}:v1")
    site.foreign.stop()
    run_images(site, f"docker.io/{HUB_IMAGE}:v1")
    certs = trusted(site.sluice, tmp_path / "certificates")
    run("skopeo", "inspect", "--cert-dir", certs, f"docker://127.0.0.1:{site.sluice.port}/docker.io/{HUB_IMAGE}:v1")
    client = RegistryClient(site.sluice)
    assert [f"docker.io/{HUB_IMAGE}"] == client.request("GET", "/v2/_catalog").json["repositories"]
    client.close()

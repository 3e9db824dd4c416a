"""Proxy and Direct mode before registries of another make, asked by a plain client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from integration.foreign import GUISES, foreign_registry
from integration.test_clients import needs, run
from sluice.lab.images import build_image
from sluice.testing.client import RegistryClient, digest_of
from sluice.testing.server import SluiceServer

pytestmark = needs("docker-registry", "skopeo", "busybox")

NAME = "team/demo"


@pytest.mark.parametrize("mode", ["proxy", "direct"])
@pytest.mark.parametrize("guise", GUISES)
def test_an_image_is_read_whole(guise: str, mode: str, tmp_path: Path) -> None:
    """Index, manifests, blobs, ranges, HEAD, tags and referrers; then twice the same answers."""
    digest = build_image(tmp_path / "image", Path(shutil.which("busybox") or ""), "v1")
    with foreign_registry(guise, tmp_path / "foreign") as foreign:
        copy = ["skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "-q", *foreign.skopeo]
        run(*copy, f"oci:{tmp_path / 'image'}:v1", f"docker://{foreign.host}/{NAME}:v1")
        with SluiceServer(tmp_path / "data", "--mode", mode, *foreign.flags) as sluice:
            client = RegistryClient(sluice)
            for _ in range(2):
                read_all(client, digest)
            absent = [client.request("GET", f"/v2/{path}") for path in (f"{NAME}/manifests/v2", "none/tags/list")]
            assert [(404, ["MANIFEST_UNKNOWN"]), (404, ["NAME_UNKNOWN"])] == [(one.status, one.codes) for one in absent]
            client.close()


def read_all(client: RegistryClient, digest: str) -> None:
    """Everything that there is to read of the image; asserts every byte."""
    index = client.request("GET", f"/v2/{NAME}/manifests/v1")
    assert (200, digest, digest) == (index.status, index.headers["docker-content-digest"], digest_of(index.body))
    assert digest == client.request("HEAD", f"/v2/{NAME}/manifests/v1").headers["docker-content-digest"]
    for child in index.json["manifests"]:
        manifest = client.request("GET", f"/v2/{NAME}/manifests/{child['digest']}")
        assert child["digest"] == digest_of(manifest.body)
        for blob in (manifest.json["config"], *manifest.json["layers"]):
            path = f"/v2/{NAME}/blobs/{blob['digest']}"
            head = client.request("HEAD", path)
            assert (200, str(blob["size"])) == (head.status, head.headers["content-length"])
            part = client.request("GET", path, headers={"Range": "bytes=3-9"})
            whole = client.request("GET", path)
            assert (206, 200, blob["digest"]) == (part.status, whole.status, digest_of(whole.body))
            assert whole.body[3:10] == part.body
    assert {"name": NAME, "tags": ["v1"]} == client.request("GET", f"/v2/{NAME}/tags/list").json
    referrers = client.request("GET", f"/v2/{NAME}/referrers/{digest}")
    assert (200, []) == (referrers.status, json.loads(referrers.body)["manifests"])

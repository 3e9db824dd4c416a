"""What one upstream gave is not taken for another one's word, and opens nothing there."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.callers import ask
from sluice.oci.digest import Digest
from sluice.oci.mediatype import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer

LAYER = random.Random(5).randbytes(300_001)
BLOB = f"team/app/blobs/{Digest.of(LAYER)}"
WAIT_S = 20.0


def forged(*layers: bytes) -> bytes:
    """A manifest that names what whoever pushes it does not have."""
    described = [
        {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}
        for kind, data in zip([OCI_CONFIG, *[OCI_LAYER] * len(layers)], [b"{}", *layers], strict=True)
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}
    return json.dumps(document).encode()


@dataclass
class Site:
    """Two upstreams, of which the first has an image, and a server that may be before either."""

    ours: UpstreamServer
    theirs: UpstreamServer
    image: Digest
    server: SluiceServer
    file: Path

    def configure(self, text: str) -> None:
        """Another configuration; in force when this returns."""
        told = self.log.count("in force now: ")
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)
        until = time.monotonic() + WAIT_S
        while self.log.count("in force now: ") == told:
            assert time.monotonic() < until, self.log
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self.server.log.read_text()

    def get(self, path: str) -> tuple[int, str | None]:
        """Status, and where the answer came from."""
        answer = ask(self.server, "GET", path)
        return answer.status, answer.headers.get("sluice-cache")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The image and its layer are held, from the first upstream."""
    with ExitStack() as stack:
        content = UpstreamContent()
        image = content.push_image("team/app", "v1", [LAYER])
        ours = stack.enter_context(UpstreamServer(content))
        theirs = stack.enter_context(UpstreamServer(UpstreamContent()))
        file = tmp_path / "config.yaml"
        registries = f"registries:\n  their.test: {theirs.address}\n"
        file.write_text(f"mode: proxy\nupstream: {ours.address}\n{registries}")
        server = stack.enter_context(SluiceServer(tmp_path / "data", "--config", str(file)))
        here = Site(ours, theirs, image, server, file)
        assert (200, "upstream") == here.get("team/app/manifests/v1")
        assert (200, "upstream") == here.get("team/app/tags/list")
        assert (200, "started") == here.get(BLOB)
        until = time.monotonic() + WAIT_S
        while here.get(BLOB) != (200, "hit"):
            assert time.monotonic() < until
        yield here


def test_a_manifest_that_names_a_blob_opens_none_of_another_registry(site: Site) -> None:
    """A registry that does not have a blob gets none that another one brought, whatever its manifests name. Where it
    has it, it is asked once, the blob is not fetched again, and the image is then served without it."""
    site.theirs.content.hold_manifest("evil/x", forged(LAYER), tag="v1")
    site.theirs.content.push_image("good/x", "v1", [LAYER])
    for name, status in (("evil/x", 404), ("good/x", 200)):
        blob = f"their.test/{name}/blobs/{Digest.of(LAYER)}"
        assert (200, "upstream") == site.get(f"their.test/{name}/manifests/v1")
        assert status == site.get(blob)[0]
    asked = site.theirs.gets(Digest.of(LAYER))
    site.theirs.stop()
    assert (200, "hit") == site.get(f"their.test/good/x/blobs/{Digest.of(LAYER)}")
    assert (2, asked) == (asked, site.theirs.gets(Digest.of(LAYER)))


@pytest.mark.parametrize("by", ["file", "restart"])
def test_another_upstream_has_said_nothing_yet(site: Site, by: str) -> None:
    """What was cached from one upstream is not there once the server is before another one, which has none of it, or
    cannot be asked: neither by tag nor by digest, and no blob, manifest or list of tags. Before the first one again,
    all is there, and in Local mode too."""
    paths = ["team/app/manifests/v1", f"team/app/manifests/{site.image}", BLOB, "team/app/tags/list"]

    def be(text: str) -> None:
        if by == "restart":
            site.server.stop()
            site.file.write_text(text)
            site.server.start()
        else:
            site.configure(text)

    be(f"mode: proxy\nupstream: {site.theirs.address}\n")
    assert [404] * 4 == [site.get(path)[0] for path in paths]
    site.theirs.stop()
    be(f"mode: proxy\nupstream: {site.theirs.address}\ncache: {{negative_s: 0.5}}\n")
    assert [502] * 4 == [site.get(path)[0] for path in paths]
    site.ours.stop()
    be(f"mode: proxy\nupstream: {site.ours.address}\n")
    assert [200] * 4 == [site.get(path)[0] for path in paths]
    be("mode: local\n")
    assert [(200, "local")] * 4 == [site.get(path) for path in paths]


def test_another_upstream_gives_what_it_has(site: Site) -> None:
    """It is asked about each tag, manifest and blob once, brings no blob that is held, and is then believed."""
    image = site.theirs.content.push_image("team/app", "v1", [LAYER], annotations={"by": "them"})
    site.configure(f"mode: proxy\nupstream: {site.theirs.address}\n")
    for origin in ("upstream", "hit"):
        assert (200, origin) == site.get("team/app/manifests/v1")
        assert (200, "hit") == site.get(f"team/app/manifests/{image}")
        assert (200, "hit") == site.get(BLOB)
        site.theirs.stop()
    assert 502 == site.get(f"team/app/manifests/{site.image}")[0]

"""Proxy and Direct mode as clients see them: a server before scripted upstreams, over real sockets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sluice.oci.digest import Digest
from sluice.testing.client import Answer, RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer, refused_address

LAYER = random.Random(3).randbytes(700_001)
SBOM = "application/vnd.example.sbom+json"
MODES = ["proxy", "direct"]


@dataclass
class Site:
    """An upstream with an image of one layer, and a Sluice before it."""

    upstream: UpstreamServer
    sluice: SluiceServer
    client: RegistryClient
    image: Digest
    layer: Digest

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One request under ``/v2/``."""
        return self.client.request(method, f"/v2/{path}", None, headers)

    def stop_upstream(self) -> None:
        self.upstream.stop()


Open = Callable[..., Site]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Open]:
    """Make a site in a mode, with further flags."""
    with ExitStack() as stack:

        def make(mode: str, *flags: str, prefix: str = "") -> Site:
            content = UpstreamContent()
            image = content.push_image(f"{prefix}team/app", "v1", [LAYER])
            content.push_image(f"{prefix}team/app", "sbom", [b"x"], subject=_subject(image), artifactType=SBOM)
            upstream = stack.enter_context(UpstreamServer(content))
            address = upstream.address + (f"/{prefix.rstrip('/')}" if prefix else "")
            sluice = SluiceServer(tmp_path / "data", "--mode", mode, "--upstream", address, *flags)
            client = RegistryClient(stack.enter_context(sluice))
            stack.callback(client.close)
            return Site(upstream, sluice, client, image, Digest.of(LAYER))

        yield make


def _subject(digest: Digest) -> dict[str, object]:
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(digest), "size": 1}


def origin(answer: Answer) -> tuple[int, str | None, str | None]:
    """Status, mode, and where the answer came from."""
    return answer.status, answer.headers.get("sluice-mode"), answer.headers.get("sluice-cache")


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_pulled(site: Open, mode: str) -> None:
    """By tag and by digest, whole and in parts, every byte as the upstream has it."""
    here = site(mode)
    by_tag = here.get("team/app/manifests/v1")
    by_digest = here.get(f"team/app/manifests/{here.image}")
    assert (200, 200) == (by_tag.status, by_digest.status)
    assert by_tag.body == by_digest.body
    assert str(here.image) == by_tag.headers["docker-content-digest"] == str(Digest.of(by_tag.body))
    blob = here.get(f"team/app/blobs/{here.layer}")
    assert (200, LAYER) == (blob.status, blob.body)
    part = here.get(f"team/app/blobs/{here.layer}", Range="bytes=600000-600099")
    assert (206, LAYER[600_000:600_100]) == (part.status, part.body)
    assert f"bytes 600000-600099/{len(LAYER)}" == part.headers["content-range"]
    last = here.get(f"team/app/blobs/{here.layer}", Range="bytes=-7")
    assert (206, LAYER[-7:]) == (last.status, last.body)
    assert 416 == here.get(f"team/app/blobs/{here.layer}", Range=f"bytes={len(LAYER)}-").status


@pytest.mark.parametrize("mode", MODES)
def test_what_is_looked_at(site: Open, mode: str) -> None:
    """HEAD of a manifest and of a blob, the tags and the referrers; and no blob is fetched for that."""
    here = site(mode)
    manifest = here.get("team/app/manifests/v1", "HEAD")
    assert (200, str(here.image), b"") == (manifest.status, manifest.headers["docker-content-digest"], manifest.body)
    blob = here.get(f"team/app/blobs/{here.layer}", "HEAD")
    assert (200, str(len(LAYER)), b"") == (blob.status, blob.headers["content-length"], blob.body)
    tags = here.get("team/app/tags/list?n=1")
    assert {"name": "team/app", "tags": ["sbom"]} == tags.json
    assert '</v2/team/app/tags/list?n=1&last=sbom>; rel="next"' == tags.headers["link"]
    referrers = here.get(f"team/app/referrers/{here.image}").json["manifests"]
    assert [SBOM] == [one["artifactType"] for one in referrers]
    assert 304 == here.get("team/app/manifests/v1", **{"If-None-Match": manifest.headers["etag"]}).status


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "manifests/v1"),
        ("DELETE", "manifests/v1"),
        ("POST", "blobs/uploads/"),
        ("PATCH", f"blobs/uploads/{'a' * 32}"),
        ("DELETE", f"blobs/{Digest.of(LAYER)}"),
    ],
)
def test_writes_are_refused(site: Open, mode: str, method: str, path: str) -> None:
    """With 405, the methods there are, and a sentence that names the mode."""
    answer = site(mode).get(f"team/app/{path}", method)
    assert (405, "GET, HEAD", ["UNSUPPORTED"]) == (answer.status, answer.headers["allow"], answer.codes)
    assert f"this registry is in {mode} mode" in answer.json["errors"][0]["message"]


def test_the_headers_say_where_an_answer_came_from(site: Open) -> None:
    """First from the upstream, then from here; the log of the upstream agrees."""
    here = site("proxy")
    first = [here.get("team/app/manifests/v1"), here.get(f"team/app/blobs/{here.layer}")]
    again = [here.get("team/app/manifests/v1"), here.get(f"team/app/blobs/{here.layer}")]
    assert [(200, "proxy", "upstream"), (200, "proxy", "started")] == [origin(one) for one in first]
    assert [(200, "proxy", "hit"), (200, "proxy", "hit")] == [origin(one) for one in again]
    assert 1 == here.upstream.gets(here.layer)


def test_direct_mode_keeps_nothing(site: Open) -> None:
    """Every answer is the upstream's, and the catalog is empty."""
    here = site("direct")
    for _ in range(2):
        assert (200, "direct", "upstream") == origin(here.get(f"team/app/blobs/{here.layer}"))
        assert (200, "direct", "upstream") == origin(here.get("team/app/manifests/v1"))
    assert 2 == here.upstream.gets(here.layer)
    assert {"repositories": []} == here.get("_catalog").json
    assert [] == [path for path in (here.sluice.data / "content").rglob("*") if path.is_file()]


def test_the_catalog_lists_what_is_held(site: Open) -> None:
    """A repository is there once something of it was fetched."""
    here = site("proxy")
    assert [] == here.get("_catalog").json["repositories"]
    here.get("team/app/manifests/v1")
    assert ["team/app"] == here.get("_catalog").json["repositories"]


@pytest.mark.parametrize("mode", MODES)
def test_an_upstream_path_is_prefixed(site: Open, mode: str) -> None:
    """``<address>/<path>`` is ``<upstream>/<prefix>/<path>``."""
    here = site(mode, prefix="mirror/of/")
    assert 200 == here.get("team/app/manifests/v1").status
    assert LAYER == here.get(f"team/app/blobs/{here.layer}").body


def test_without_its_upstream_what_is_held_is_served(site: Open) -> None:
    """Tags stale and with a warning once they are not fresh, digests as ever; the unknown is no 404."""
    here = site("proxy", "--cache-tag-fresh-s", "0", "--cache-revalidate", "first")
    for path in ("manifests/v1", f"blobs/{here.layer}", "tags/list", f"referrers/{here.image}"):
        assert 200 == here.get(f"team/app/{path}").status
    here.stop_upstream()
    stale = here.get("team/app/manifests/v1")
    assert (200, "proxy", 'stale; reason="unreachable"') == origin(stale)
    assert '110 - "Response is Stale"' == stale.headers["warning"]
    assert (200, "proxy", "hit") == origin(here.get(f"team/app/manifests/{here.image}"))
    assert LAYER == here.get(f"team/app/blobs/{here.layer}").body
    assert 200 == here.get("team/app/tags/list").status
    assert 200 == here.get(f"team/app/referrers/{here.image}").status
    for path in ("team/app/manifests/v2", f"team/app/blobs/{Digest.of(b'absent')}", "other/tags/list"):
        unknown = here.get(path)
        assert (502, ["UNAVAILABLE"]) == (unknown.status, unknown.codes)


@pytest.mark.parametrize("mode", MODES)
def test_what_the_upstream_lacks_is_not_there(site: Open, mode: str) -> None:
    """A 404 of the upstream's is a 404 with the specification's code."""
    here = site(mode)
    answers = [here.get(f"team/app/{path}") for path in ("manifests/v9", f"blobs/{Digest.of(b'absent')}")]
    assert [(404, ["MANIFEST_UNKNOWN"]), (404, ["BLOB_UNKNOWN"])] == [(one.status, one.codes) for one in answers]


@pytest.mark.parametrize("mode", MODES)
def test_it_starts_without_its_upstream(tmp_path: Path, mode: str) -> None:
    """And says 502 until there is one."""
    with (
        refused_address() as address,
        SluiceServer(tmp_path / "data", "--mode", mode, "--upstream", address) as server,
    ):
        client = RegistryClient(server)
        assert 200 == client.request("GET", "/v2/").status
        assert 502 == client.request("GET", "/v2/team/app/manifests/v1").status
        client.close()


@pytest.mark.parametrize("mode", MODES)
def test_registries_have_their_own_names(site: Open, tmp_path: Path, mode: str) -> None:
    """By containerd's namespace and by path; Docker Hub's short names; each name's content apart."""
    hub, port = UpstreamContent(), UpstreamContent()
    hub_image = hub.push_image("library/busybox", "v1", [b"hub"])
    port_image = port.push_image("team/app", "v1", [b"port"])
    with UpstreamServer(hub) as first, UpstreamServer(port) as second:
        registries = ["--registries", f"docker.io={first.address}", "--registries", f"r.test:5000={second.address}"]
        here = site(mode, *registries)
        expected = {
            "library/busybox/manifests/v1?ns=docker.io": hub_image,
            "busybox/manifests/v1?ns=docker.io": hub_image,
            "docker.io/library/busybox/manifests/v1": hub_image,
            "docker.io/busybox/manifests/v1": hub_image,
            "team/app/manifests/v1?ns=r.test:5000": port_image,
            "team/app/manifests/v1?ns=r.test%3A5000": port_image,
            "r.test_5000/team/app/manifests/v1": port_image,
            "team/app/manifests/v1": here.image,
            "team/app/manifests/v1?ns=elsewhere.test": here.image,
        }
        for _ in range(2):
            found = {path: here.get(path).headers.get("docker-content-digest") for path in expected}
            assert {path: str(digest) for path, digest in expected.items()} == found
        tags = here.get("team/app/tags/list?n=0&ns=r.test:5000").json
        assert {"name": "team/app", "tags": []} == tags
    kept = ["docker.io/library/busybox", "r.test_5000/team/app", "team/app"] if mode == "proxy" else []
    assert kept == here.get("_catalog").json["repositories"]

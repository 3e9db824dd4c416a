"""Proxy and Direct mode as clients see them: a server before scripted upstreams, over real sockets."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.callers import USERS, ask, basic, with_users
from sluice.oci.digest import Digest
from sluice.server.users import Role
from sluice.testing.client import Answer, RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import (
    Failing,
    Fault,
    Liar,
    Lie,
    RateLimited,
    Scheme,
    Stall,
    Unauthorized,
    UpstreamContent,
    UpstreamServer,
    blobs,
    refused_address,
)

LAYER = random.Random(3).randbytes(700_001)
SBOM = "application/vnd.example.sbom+json"
MODES = ["proxy", "direct"]
SETTLE_S = 20.0


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

    def settle(self) -> None:
        """Return once no blob is on its way into the store: the last reader has all before the disk has."""
        until = time.monotonic() + SETTLE_S
        while "sluice_cache_fills_active 0.0" not in self.sluice.operations("/metrics")[1].splitlines():
            assert time.monotonic() < until, f"a fill goes on for {SETTLE_S} s"
            time.sleep(0.02)

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
    here.settle()
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


def test_a_request_that_comes_back_is_refused(site: Open) -> None:
    """``Via`` has who sent it on: a chain of others is passed on, our own name in it is a loop."""
    here = site("proxy")
    assert 200 == here.get("team/app/manifests/v1", Via="1.1 other").status
    sent = here.upstream.requests[-1].headers["via"]
    assert sent.startswith("1.1 other, 1.1 sluice-")
    loop = here.get("team/app/manifests/v2", Via=sent)
    assert (508, ["UNAVAILABLE"]) == (loop.status, loop.codes)


def test_two_that_are_each_others_upstream(tmp_path: Path) -> None:
    """Nothing goes round: the first one that sees itself again says so, and the client is told."""
    first = SluiceServer(tmp_path / "first", "--mode", "proxy", tls=False)
    second = SluiceServer(tmp_path / "second", "--mode", "direct", "--upstream", first.url, tls=False)
    first.flags = [*first.flags, "--upstream", second.url]
    with first, second:
        client = RegistryClient(first)
        answer = client.request("GET", "/v2/team/app/manifests/v1")
        client.close()
    assert (508, ["UNAVAILABLE"]) == (answer.status, answer.codes)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_does_not_start_as_its_own_upstream(tmp_path: Path, host: str) -> None:
    """Exit code 2 and a line that names the setting."""
    server = SluiceServer(tmp_path / "data", "--mode", "proxy")
    server.flags = [*server.flags, "--upstream", f"http://{host}:{server.port}"]
    with pytest.raises(AssertionError, match="which is this server's own listen"):
        server.start()
    assert server.process is not None
    assert 2 == server.process.wait(10)


def test_the_metrics_tell(site: Open) -> None:
    """Where answers came from, memory included, what came from the upstream, and how it is."""
    here = site("proxy", "--cache-tag-fresh-s", "600")
    for _ in range(5):
        here.get("team/app/manifests/v1")
    here.get(f"team/app/blobs/{here.layer}")
    here.settle()
    found = here.sluice.operations("/metrics")[1].splitlines()
    expected = [
        'sluice_mode{mode="proxy"} 1.0',
        'sluice_mode{mode="local"} 0.0',
        'sluice_upstream_broken{registry="default"} 0.0',
        'sluice_cache_answers_total{kind="upstream"} 1.0',
        'sluice_cache_answers_total{kind="started"} 1.0',
        'sluice_cache_answers_total{kind="hit"} 4.0',
        "sluice_cache_fills_begun_total 1.0",
        "sluice_cache_fills_active 0.0",
        "sluice_config_valid 1.0",
    ]
    assert [] == [line for line in expected if line not in found]


@pytest.mark.parametrize("mode", MODES)
def test_users_are_asked_for_in_every_mode(tmp_path: Path, mode: str) -> None:
    """Access is by the name here, whichever way it is addressed; tokens are for it too."""
    content = UpstreamContent()
    for name in ("team/app", "shared", "library/busybox"):
        content.push_image(name, "v1", [b"guarded"])
    data = with_users(tmp_path / "data", [*USERS, ("hub", Role.READ, ("docker.io",))])
    with UpstreamServer(content) as upstream:
        flags = ["--mode", mode, "--upstream", upstream.address, "--registries", f"docker.io={upstream.address}"]
        with SluiceServer(data, *flags) as server:
            paths = ["team/app/manifests/v1", "team/app/manifests/v1?ns=docker.io", "docker.io/busybox/manifests/v1"]
            found = {
                name: [ask(server, "GET", path, basic(name)).status for path in paths]
                for name in ("reader", "team", "hub")
            }
            assert {"reader": [200] * 3, "team": [200, 403, 403], "hub": [403, 200, 200]} == found
            stranger = ask(server, "GET", "busybox/manifests/v1?ns=docker.io")
            assert 401 == stranger.status
            assert 'scope="repository:docker.io/library/busybox:pull"' in stranger.headers["www-authenticate"]


@pytest.mark.parametrize("mode", MODES)
def test_a_blob_of_unknown_size(site: Open, mode: str) -> None:
    """Passes whole, and a range of it is answered with a part or with the whole."""
    here = site(mode)
    here.upstream.faults = [Liar(Lie.CHUNKED, when=blobs)]
    assert 200 == here.get("team/app/manifests/v1").status
    part = here.get(f"team/app/blobs/{here.layer}", Range="bytes=5-14")
    assert part.status in {200, 206}
    assert (LAYER if part.status == 200 else LAYER[5:15]) == part.body
    assert LAYER == here.get(f"team/app/blobs/{here.layer}").body


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (RateLimited(7), 503, "TOOMANYREQUESTS"),
        (Failing(), 502, "UNAVAILABLE"),
        (Stall(), 504, "UNAVAILABLE"),
        (Unauthorized(scheme=Scheme.BASIC), 502, "UNAVAILABLE"),
        (Liar(Lie.HTML), 502, "UNAVAILABLE"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_upstream_could_not_answer(site: Open, mode: str, fault: Fault, status: int, code: str) -> None:
    """Is told with a status of its own and a reason, and is never a 404 or a 401; what is known of waiting is passed
    on."""
    here = site(mode, "--upstream-head-s", "1", "--upstream-idle-s", "1")
    here.upstream.faults = [fault]
    answer = here.get("team/app/manifests/v1")
    assert (status, [code]) == (answer.status, answer.codes)
    assert ("7" if status == 503 else None) == answer.headers.get("retry-after")
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("stays", [True, False], ids=["reader stays", "reader left"])
@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_stops_in_the_middle_leaves_nothing(site: Open, mode: str, stays: bool) -> None:
    """Whether or not somebody still reads: it ends within its drain, with exit code 0 and no byte of the blob."""
    here = site(mode, "--limits-drain-s", "1")
    here.upstream.faults = [Stall(300_000, when=blobs)]
    connection = here.client.connect()
    connection.request("GET", f"/v2/team/app/blobs/{here.layer}")
    response = connection.getresponse()
    assert LAYER[:200_000] == response.read(200_000)
    if not stays:
        connection.close()
    assert 0 == here.sluice.stop()
    connection.close()
    kept = [path for name in ("content", "uploads") for path in (here.sluice.data / name).rglob("*") if path.is_file()]
    assert [] == kept
    assert "Traceback" not in here.sluice.log.read_text()

"""The scripted upstream as a correct registry: what it answers, what it notes, that it goes and comes back."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from upstream_client import TIMEOUT_S, get, no_thread_left, read_to_end, send

from sluice.oci.digest import Digest
from sluice.testing.client import digest_of
from sluice.testing.upstreams import GeneratedBlob, UpstreamContent, UpstreamServer, make_tls, of_digest

LAYER = bytes(range(256)) * 40
SIZE = len(LAYER)
HUGE_BYTES = 20 * 1000**3


@pytest.fixture
def content() -> UpstreamContent:
    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    return content


@pytest.fixture
def upstream(content: UpstreamContent) -> Iterator[UpstreamServer]:
    with no_thread_left(), UpstreamServer(content) as server:
        yield server


def blob_path(data: bytes = LAYER) -> str:
    return f"/v2/team/app/blobs/{digest_of(data)}"


def test_a_manifest_comes_by_tag_and_by_digest_with_its_type_and_digest(upstream: UpstreamServer) -> None:
    """Both ways give the same bytes; HEAD gives the same head and no body."""
    by_tag = get(upstream.port, "/v2/team/app/manifests/v1")
    digest = by_tag.headers["docker-content-digest"]
    by_digest = get(upstream.port, f"/v2/team/app/manifests/{digest}")
    head = get(upstream.port, "/v2/team/app/manifests/v1", "HEAD")
    assert (200, digest) == (by_tag.status, digest_of(by_tag.body))
    assert by_tag == by_digest
    assert (200, by_tag.headers, b"") == (head.status, head.headers, head.body)
    assert digest_of(LAYER) == by_tag.json["layers"][0]["digest"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=100-199", slice(100, 200)),
        (f"bytes={SIZE - 1}-", slice(SIZE - 1, SIZE)),
        ("bytes=-10", slice(SIZE - 10, SIZE)),
        (f"bytes=5-{SIZE * 2}", slice(5, SIZE)),
    ],
)
def test_a_range_of_a_blob_comes_with_206(upstream: UpstreamServer, wanted: str, expected: slice) -> None:
    """Single, open and suffix ranges bring these bytes, and say which they are."""
    got = get(upstream.port, blob_path(), Range=wanted)
    first = f"bytes {expected.start}-{expected.stop - 1}/{SIZE}"
    assert (206, first, LAYER[expected]) == (got.status, got.headers["content-range"], got.body)


def test_a_range_beyond_the_end_is_refused(upstream: UpstreamServer) -> None:
    """416 with the whole size."""
    got = get(upstream.port, blob_path(), Range=f"bytes={SIZE}-")
    assert (416, f"bytes */{SIZE}") == (got.status, got.headers["content-range"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 200),
        ("GET", "/v2/team/app/manifests/v2", 404),
        ("GET", "/v2/other/manifests/v1", 404),
        ("GET", f"/v2/other/blobs/{digest_of(LAYER)}", 404),
        ("GET", "/v2/other/tags/list", 404),
        ("GET", "/token", 404),
        ("GET", "/", 404),
        ("PUT", "/v2/team/app/manifests/v1", 405),
    ],
)
def test_statuses(upstream: UpstreamServer, method: str, path: str, status: int) -> None:
    """What is not held is not there, and nothing can be pushed."""
    assert status == get(upstream.port, path, method).status


def test_tags_come_in_pages(content: UpstreamContent, upstream: UpstreamServer) -> None:
    """``n`` and ``last`` cut the list, and ``Link`` leads to the rest; moved and deleted tags show."""
    digest = content.push_image("team/app", "v3", [b"other"])
    content.move_tag("team/app", "v2", digest)
    page = get(upstream.port, "/v2/team/app/tags/list?n=2")
    rest = get(upstream.port, page.headers["link"].partition(">")[0][1:])
    content.delete_tag("team/app", "v2")
    assert (["v1", "v2"], ["v3"]) == (page.json["tags"], rest.json["tags"])
    assert "link" not in rest.headers
    assert ["v1", "v3"] == get(upstream.port, "/v2/team/app/tags/list").json["tags"]
    assert 404 == get(upstream.port, "/v2/team/app/manifests/v2").status


def test_referrers_are_listed_and_filtered(content: UpstreamContent, upstream: UpstreamServer) -> None:
    """Manifests that name the subject, all or of one artifact type."""
    subject = content.push_image("team/app", "v1", [LAYER])
    named = {"mediaType": "x", "digest": str(subject), "size": 1}
    first = content.push_image("team/app", subject=named, artifactType="test/a")
    second = content.push_image("team/app", subject=named, artifactType="test/b")
    path = f"/v2/team/app/referrers/{subject}"
    everything = {one["digest"] for one in get(upstream.port, path).json["manifests"]}
    some = get(upstream.port, f"{path}?artifactType=test/b")
    assert {str(first), str(second)} == everything
    assert [str(second)] == [one["digest"] for one in some.json["manifests"]]
    assert "artifactType" == some.headers["oci-filters-applied"]


def test_a_huge_blob_costs_no_memory_and_can_be_read_anywhere(
    content: UpstreamContent, upstream: UpstreamServer
) -> None:
    """20 GB under a declared digest: the last octets come at once, and they are those of the pattern."""
    blob = GeneratedBlob(HUGE_BYTES, declared=Digest.of(b"as declared"))
    digest = content.hold_blob("team/app", blob)
    head = get(upstream.port, f"/v2/team/app/blobs/{digest}", "HEAD")
    tail = get(upstream.port, f"/v2/team/app/blobs/{digest}", Range="bytes=-7")
    assert str(HUGE_BYTES) == head.headers["content-length"]
    assert bytes(blob.read(HUGE_BYTES - 7, 7)) == tail.body


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 3 * 1024 * 1024 + 17])
def test_a_generated_blob_hashes_to_its_digest(content: UpstreamContent, upstream: UpstreamServer, size: int) -> None:
    """The computed digest is that of the bytes that come."""
    digest = content.hold_blob("team/app", GeneratedBlob(size, seed=7))
    body = get(upstream.port, f"/v2/team/app/blobs/{digest}").body
    assert (size, str(digest)) == (len(body), digest_of(body))


def test_a_connection_is_kept_and_requests_are_noted(upstream: UpstreamServer) -> None:
    """Three requests over one connection: each is noted with what was sent for it."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=TIMEOUT_S)
    for method, path in (("GET", "/v2/"), ("GET", blob_path()), ("HEAD", blob_path())):
        connection.request(method, f"{path}?ns=docker.io", headers={"X-Test": "yes"})
        connection.getresponse().read()
    connection.close()
    upstream.wait_idle()
    noted = [(one.method, one.status, one.bytes_sent, one.left_early, one.connection) for one in upstream.requests]
    assert [("GET", 200, 2, False, 1), ("GET", 200, SIZE, False, 1), ("HEAD", 200, 0, False, 1)] == noted
    assert {("yes", "docker.io")} == {(one.headers["x-test"], one.only("ns")) for one in upstream.requests}
    assert (1, 1) == (upstream.connections, upstream.gets(digest_of(LAYER)))
    assert 2 == len(upstream.seen(of_digest(digest_of(LAYER))))


def test_a_client_that_leaves_in_the_middle_is_noted(content: UpstreamContent, upstream: UpstreamServer) -> None:
    """Its request ends early, with fewer bytes than there are."""
    digest = content.hold_blob("team/app", GeneratedBlob(HUGE_BYTES, declared=Digest.of(b"x")))
    sock = send(upstream.port, f"/v2/team/app/blobs/{digest}")
    sock.recv(1000)
    sock.close()
    upstream.wait_idle()
    (request,) = upstream.requests
    assert request.left_early
    assert request.bytes_sent < HUGE_BYTES


def test_it_goes_and_comes_back_on_the_same_port(content: UpstreamContent) -> None:
    """Stopped, it refuses connections and has cut those that were open; started, it answers again."""
    digest = content.hold_blob("team/app", GeneratedBlob(HUGE_BYTES, declared=Digest.of(b"x")))
    with no_thread_left(), UpstreamServer(content) as upstream:
        idle = socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S)
        paused = send(upstream.port, f"/v2/team/app/blobs/{digest}")
        paused.recv(1)
        upstream.wait_for(lambda: len(upstream.requests) == 1)
        upstream.stop()
        assert (b"", False) == (read_to_end(idle).head, upstream.requests[0].left_early)
        assert len(read_to_end(paused).body) < HUGE_BYTES
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S)
        upstream.start()
        assert 200 == get(upstream.port, "/v2/").status


def test_a_hundred_clients_at_once(upstream: UpstreamServer) -> None:
    """Each gets the whole blob, and each request is noted."""
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(get(upstream.port, blob_path()).body)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([LAYER] * 100, 100) == (bodies, upstream.gets(digest_of(LAYER)))


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_request_gets_400(upstream: UpstreamServer, head: bytes) -> None:
    """And the end of the connection; it is not noted."""
    sock = socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S)
    sock.sendall(head)
    raw = read_to_end(sock)
    assert (b"HTTP/1.1 400 Bad Request", False) == (raw.head.splitlines()[0], raw.reset)
    assert [] == upstream.requests


def test_a_post_is_noted_with_its_body(upstream: UpstreamServer) -> None:
    """Token requests by POST are forms."""
    get(upstream.port, "/token", "POST", b"grant_type=password")
    assert [b"grant_type=password"] == [one.body for one in upstream.requests]


def test_it_speaks_tls_with_an_authority_of_its_own(content: UpstreamContent, tmp_path: Path) -> None:
    """Who trusts the authority gets in; stopping ends a handshake that never comes."""
    with no_thread_left(), UpstreamServer(content, tls=make_tls(tmp_path)) as upstream:
        assert upstream.tls is not None
        context = upstream.tls.client_context()
        connection = http.client.HTTPSConnection("127.0.0.1", upstream.port, timeout=TIMEOUT_S, context=context)
        connection.request("GET", blob_path())
        body = connection.getresponse().read()
        connection.close()
        mute = socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S)
        while upstream.connections < 2:
            time.sleep(0.01)
        upstream.stop()
        mute.close()
    assert (LAYER, True) == (body, upstream.address.startswith("https://127.0.0.1:"))


def test_a_client_certificate_can_be_demanded(content: UpstreamContent, tmp_path: Path) -> None:
    """Without one the connection does not come to an answer."""
    clients = make_tls(tmp_path / "clients")
    with no_thread_left(), UpstreamServer(content, tls=make_tls(tmp_path / "s", client_ca=clients.ca)) as upstream:
        assert upstream.tls is not None
        context = upstream.tls.client_context()
        connection = http.client.HTTPSConnection("127.0.0.1", upstream.port, timeout=TIMEOUT_S, context=context)
        connection.connect()  # TLS 1.3: the client is done before the server has missed its certificate
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connection.sock.recv(1)
        connection.close()
    assert [] == upstream.requests

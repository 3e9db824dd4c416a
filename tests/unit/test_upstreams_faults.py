"""What a client of a misbehaving upstream sees, octet by octet."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from upstream_client import KEEP, get, is_quiet, no_thread_left, read_exactly, read_to_end, send

from sluice.testing.client import digest_of
from sluice.testing.upstreams import (
    Cut,
    Failing,
    Fault,
    Kind,
    Liar,
    NoHead,
    RateLimited,
    Redirect,
    Slow,
    Stall,
    Unauthorized,
    UpstreamContent,
    UpstreamServer,
    all_of,
    blobs,
    gets,
    manifests,
    of_digest,
    tokens,
)

LAYER = bytes(range(256)) * 4000
SIZE = len(LAYER)
BLOB = f"/v2/app/blobs/{digest_of(LAYER)}"
MANIFEST = "/v2/app/manifests/v1"
USERS = {"ada": "lovelace"}
BASIC = "Basic " + base64.b64encode(b"ada:lovelace").decode()
SCOPE = "repository:app:pull"


@pytest.fixture
def upstream() -> Iterator[UpstreamServer]:
    content = UpstreamContent()
    content.push_image("app", "v1", [LAYER])
    with no_thread_left(), UpstreamServer(content) as server:
        yield server


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("after", [0, 1, 100_000, SIZE - 1])
def test_a_cut_body_has_exactly_so_many_octets(upstream: UpstreamServer, after: int, rst: bool) -> None:
    """Then a FIN or a RST comes; the length in the head is that of the whole."""
    upstream.faults = (Cut(after, rst=rst),)
    raw = read_to_end(send(upstream.port, BLOB))
    assert (LAYER[:after], rst) == (raw.body, raw.reset)
    assert f"Content-Length: {SIZE}".encode() in raw.head
    upstream.wait_idle()
    assert [(after, False)] == [(one.bytes_sent, one.left_early) for one in upstream.requests]


def test_a_cut_loses_nothing_before_it_even_if_the_client_has_sent_more(upstream: UpstreamServer) -> None:
    """Octets that the server has not read would make a RST of its FIN, and the kernel drop what it has not sent."""
    upstream.faults = (Stall(10), Cut(60_000))
    sock = send(upstream.port, BLOB, "GET", KEEP, window=4096)
    read_exactly(sock, 10)
    sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
    upstream.faults = ()
    upstream.wait_idle()
    raw = read_to_end(sock)
    assert (LAYER[10:60_000], False) == (raw.head, raw.reset)


@pytest.mark.parametrize("rst", [False, True])
def test_a_cut_before_the_head_sends_nothing(upstream: UpstreamServer, rst: bool) -> None:
    """The connection ends without an octet."""
    upstream.faults = (Cut(before_head=True, rst=rst),)
    raw = read_to_end(send(upstream.port, BLOB))
    assert (b"", b"", rst) == (raw.head, raw.body, raw.reset)


def test_a_cut_upstream_lets_itself_be_resumed(upstream: UpstreamServer) -> None:
    """With ``times`` the next request, for the rest, is answered whole; shorter answers did not count."""
    upstream.faults = (Cut(1000, times=1),)
    assert 200 == get(upstream.port, MANIFEST).status
    assert 200 == get(upstream.port, BLOB, "HEAD").status
    first = read_to_end(send(upstream.port, BLOB)).body
    rest = get(upstream.port, BLOB, Range=f"bytes={len(first)}-").body
    assert (1000, LAYER) == (len(first), first + rest)
    assert 2 == upstream.gets(digest_of(LAYER))


def test_a_stall_before_the_head_ends_when_the_faults_change(upstream: UpstreamServer) -> None:
    """Nothing comes, not even an end; then everything."""
    upstream.faults = (Stall(),)
    sock = send(upstream.port, BLOB)
    assert is_quiet(sock)
    upstream.faults = ()
    assert LAYER == read_to_end(sock).body


def test_a_stall_in_the_body_ends_when_the_client_leaves(upstream: UpstreamServer) -> None:
    """So many octets come and no more; the client that gives up is noted."""
    upstream.faults = (Stall(1000, times=1),)
    sock = send(upstream.port, BLOB)
    assert LAYER[:1000] == read_exactly(sock, 1000)
    assert is_quiet(sock)
    assert LAYER == get(upstream.port, BLOB).body
    sock.close()
    upstream.wait_idle()
    assert [(1000, True), (SIZE, False)] == [(one.bytes_sent, one.left_early) for one in upstream.requests]


def test_a_stall_ends_when_the_server_stops(upstream: UpstreamServer) -> None:
    """With a FIN, and nobody is said to have left."""
    upstream.faults = (Stall(1000),)
    sock = send(upstream.port, BLOB)
    read_exactly(sock, 1000)
    upstream.stop()
    assert (b"", False, False) == (read_to_end(sock).head, upstream.requests[0].left_early, upstream.open_connections)


def test_a_slow_upstream_sends_small_pieces_at_its_speed(upstream: UpstreamServer) -> None:
    """Half a second's worth has not come sooner; the head has; the whole is right."""
    upstream.faults = (Slow(200_000, when=blobs),)
    began = time.monotonic()
    body = get(upstream.port, BLOB, Range="bytes=0-99999").body
    assert LAYER[:100_000] == body
    assert time.monotonic() - began > 0.35


def test_faults_combine(upstream: UpstreamServer) -> None:
    """A slow answer that stalls, goes on and breaks off."""
    upstream.faults = (Slow(1e6), Stall(100), Cut(2000))
    sock = send(upstream.port, BLOB)
    taken = read_exactly(sock, 100)
    assert (LAYER[:100], True) == (taken, is_quiet(sock))
    upstream.faults = ()
    assert LAYER[100:2000] == read_to_end(sock).head


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("short", 200, LAYER[:-1]),
        ("long", 200, LAYER + b"+"),
        ("digest-header", 200, LAYER),
        ("wrong-content-type", 200, LAYER),
        ("no-range", 200, LAYER),
        ("wrong-range", 200, LAYER),
    ],
)
def test_a_lie_about_the_whole_agrees_with_itself(
    upstream: UpstreamServer, kind: str, status: int, body: bytes
) -> None:
    """The length that is said is that of what comes."""
    upstream.faults = (Liar(kind),)
    got = get(upstream.port, BLOB)
    assert (status, str(len(body)), body) == (got.status, got.headers["content-length"], got.body)
    assert (kind == "wrong-content-type") == (got.headers["content-type"] == "text/plain")
    assert (kind == "digest-header") == (got.headers["docker-content-digest"] != digest_of(LAYER))


@pytest.mark.parametrize("at", [0, 5000, -1])
def test_wrong_bytes_differ_in_one_octet(upstream: UpstreamServer, at: int) -> None:
    """The one that was chosen, and in a range only where it has it."""
    upstream.faults = (Liar("bytes", at=at),)
    body = get(upstream.port, BLOB).body
    assert [at % SIZE] == [index for index in range(SIZE) if body[index] != LAYER[index]]
    assert LAYER[10:20] == get(upstream.port, BLOB, Range="bytes=10-19").body


@pytest.mark.parametrize(("kind", "mark"), [("chunked-no-length", b"Transfer-Encoding: chunked"), ("until-close", b"")])
def test_a_body_of_unknown_length_is_whole(upstream: UpstreamServer, kind: str, mark: bytes) -> None:
    """No length is said; a chunked one that is cut has no last chunk."""
    upstream.faults = (Liar(kind),)
    got = get(upstream.port, BLOB)
    raw = read_to_end(send(upstream.port, BLOB, "GET", KEEP if kind == "until-close" else "close"))
    assert (LAYER, False) == (got.body, "content-length" in got.headers)
    assert mark in raw.head
    upstream.faults = (Liar(kind), Cut(1000))
    cut = read_to_end(send(upstream.port, BLOB))
    assert LAYER[:1000] == (cut.body if kind == "until-close" else cut.body[5:1005])
    assert not cut.body.endswith(b"0\r\n\r\n")


def test_a_range_is_ignored_or_moved(upstream: UpstreamServer) -> None:
    """The whole with 200, or a 206 for other bytes, which says so."""
    upstream.faults = (Liar("no-range"),)
    ignored = get(upstream.port, BLOB, Range="bytes=10-19")
    assert (200, LAYER, False) == (ignored.status, ignored.body, "content-range" in ignored.headers)
    upstream.faults = (Liar("wrong-range"),)
    moved = get(upstream.port, BLOB, Range="bytes=10-19")
    assert (206, LAYER[11:20], f"bytes 11-19/{SIZE}") == (moved.status, moved.body, moved.headers["content-range"])


@pytest.mark.parametrize("path", [MANIFEST, BLOB, "/v2/app/tags/list", "/v2/app/manifests/unknown"])
def test_a_page_instead_of_content(upstream: UpstreamServer, path: str) -> None:
    """HTML with 200, even for what is not there."""
    upstream.faults = (Liar("html"),)
    got = get(upstream.port, path)
    assert (200, "text/html", b"<!doctype") == (got.status, got.headers["content-type"], got.body[:9])


def test_redirects_go_where_they_are_told(upstream: UpstreamServer) -> None:
    """Another server, an exact place, or round in a circle; a manifest is left alone, and so is what is not there."""
    for fault, location in (
        (
            Redirect("http://127.0.0.2:1", query="sig=1"),
            f"http://127.0.0.2:1{BLOB}?sig=1",
        ),
        (Redirect("http://10.0.0.1/secret", exact=True), "http://10.0.0.1/secret"),
        (Redirect(), upstream.address + BLOB),
    ):
        upstream.faults = (fault,)
        got = get(upstream.port, BLOB)
        assert (307, location, b"") == (got.status, got.headers["location"], got.body)
    assert 200 == get(upstream.port, MANIFEST).status
    assert 404 == get(upstream.port, f"/v2/app/blobs/{digest_of(b'other')}").status


@pytest.mark.parametrize(("retry_after", "expected"), [(None, None), (7, "7"), ("Thu, 01 Jan 2099 00:00:00 GMT",) * 2])
def test_rate_limits(upstream: UpstreamServer, retry_after: int | str | None, expected: str | None) -> None:
    """429 so many times, with ``Retry-After`` where it is wanted; then the answer."""
    upstream.faults = (RateLimited(retry_after, times=2),)
    got = [get(upstream.port, MANIFEST) for _ in range(3)]
    assert [429, 429, 200] == [one.status for one in got]
    assert (expected, "0;w=21600") == (got[0].headers.get("retry-after"), got[0].headers["ratelimit-remaining"])


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Failing(503, times=1), [503, 200, 200, 200]),
        (Failing(500, when=blobs), [200, 500, 200, 500]),
        (Failing(500, when=of_digest(digest_of(LAYER)), times=1), [200, 500, 200, 200]),
        (Failing(404, when=all_of(manifests, gets)), [404, 200, 404, 200]),
        (NoHead(), [200, 200, 200, 200]),
    ],
)
def test_faults_are_for_the_requests_that_match(upstream: UpstreamServer, fault: Fault, expected: list[int]) -> None:
    """By kind, digest, method and number; all others are answered."""
    upstream.faults = (fault,)
    assert expected == [get(upstream.port, path).status for path in (MANIFEST, BLOB, MANIFEST, BLOB)]


def test_an_upstream_without_head(upstream: UpstreamServer) -> None:
    """405 with what is allowed."""
    upstream.faults = (NoHead(),)
    got = get(upstream.port, MANIFEST, "HEAD")
    assert (405, "GET") == (got.status, got.headers["allow"])


def test_faults_may_be_changed_while_many_ask(upstream: UpstreamServer) -> None:
    """``times`` holds among threads: of fifty at once, exactly ten fail."""
    upstream.faults = (Failing(times=10),)
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(get(upstream.port, MANIFEST).status)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (10, 40) == (statuses.count(503), statuses.count(200))


def token_of(upstream: UpstreamServer, member: str = "token") -> str:
    got = get(upstream.port, f"/token?service=upstream.test&scope={SCOPE}", Authorization=BASIC)
    return f"Bearer {got.json[member]}"


def test_the_token_flow(upstream: UpstreamServer) -> None:
    """The challenge names realm, service and scope; the right password brings a token, and that the content."""
    upstream.faults = (Unauthorized(USERS), Cut(10, times=1, when=blobs))
    refused = get(upstream.port, BLOB)
    challenge = f'Bearer realm="{upstream.address}/token",service="upstream.test",scope="{SCOPE}"'
    assert (401, challenge) == (refused.status, refused.headers["www-authenticate"])
    assert 401 == get(upstream.port, "/token").status
    assert 401 == get(upstream.port, "/token", Authorization="Basic YWRhOm5v").status
    token = token_of(upstream)
    assert 10 == len(read_to_end(send(upstream.port, BLOB, "GET", "close", f"Authorization: {token}")).body)
    assert LAYER == get(upstream.port, BLOB, Authorization=token).body
    assert 401 == get(upstream.port, "/v2/other/manifests/v1", Authorization=token).status


def test_tokens_by_post(upstream: UpstreamServer) -> None:
    """Where only POST is allowed, a form brings an ``access_token`` and GET 405."""
    upstream.faults = (Unauthorized(USERS, methods=("POST",), member="access_token", declared_s=None),)
    form = {"grant_type": "password", "username": "ada", "password": "lovelace", "scope": SCOPE}
    got = get(upstream.port, "/token", "POST", urlencode(form).encode())
    wrong = get(upstream.port, "/token", "POST", urlencode({**form, "password": "no"}).encode())
    assert (["access_token"], 401, 405) == ([*got.json], wrong.status, get(upstream.port, "/token").status)
    assert 200 == get(upstream.port, MANIFEST, Authorization=f"Bearer {got.json['access_token']}").status


@pytest.mark.parametrize("later", [Unauthorized(USERS, generation=1), Unauthorized(USERS, lifetime_s=0)])
def test_a_token_that_is_over(upstream: UpstreamServer, later: Unauthorized) -> None:
    """Whatever ``expires_in`` said: 401 with ``invalid_token``."""
    upstream.faults = (Unauthorized(USERS),)
    token = token_of(upstream)
    upstream.faults = (later,)
    got = get(upstream.port, MANIFEST, Authorization=token)
    assert (401, True) == (got.status, 'error="invalid_token"' in got.headers["www-authenticate"])


@pytest.mark.parametrize(("denied", "status"), [(False, 401), (True, 403)])
def test_a_good_token_that_does_not_open_blobs(upstream: UpstreamServer, denied: bool, status: int) -> None:
    """The manifest comes, the blob does not."""
    upstream.faults = (Unauthorized(USERS, refused=frozenset({Kind.BLOB}), denied=denied),)
    token = token_of(upstream)
    found = [get(upstream.port, path, Authorization=token).status for path in (MANIFEST, BLOB)]
    assert [200, status] == found


def test_anonymous_tokens_and_another_realm(upstream: UpstreamServer) -> None:
    """Whoever names nobody gets a token where that is allowed; the realm may be elsewhere; its endpoint may fail."""
    upstream.faults = (Unauthorized(anonymous=True, realm="http://auth.invalid/token"),)
    assert 'realm="http://auth.invalid/token"' in get(upstream.port, "/v2/").headers["www-authenticate"]
    token = get(upstream.port, f"/token?scope={SCOPE}").json["token"]
    assert 200 == get(upstream.port, MANIFEST, Authorization=f"Bearer {token}").status
    upstream.faults = (Unauthorized(anonymous=True), Failing(503, when=tokens))
    assert [401, 503] == [get(upstream.port, path).status for path in (MANIFEST, "/token")]


def test_basic_alone(upstream: UpstreamServer) -> None:
    """The challenge asks for a password; a token does not help."""
    upstream.faults = (Unauthorized(USERS, scheme="basic"),)
    refused = get(upstream.port, MANIFEST, Authorization="Bearer abc")
    assert (401, "Basic ") == (refused.status, refused.headers["www-authenticate"][:6])
    assert 200 == get(upstream.port, MANIFEST, Authorization=BASIC).status

"""The table of bad input against a running server: refused by name, within bounds, and without a trace.

Each case is sent as octets over a socket of its own, so that nothing between test and server repairs it. The server's
directory is looked over at the end (``registry`` in conftest).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from integration.samples import HELD, encoded, files_of, outcome
from sluice.server.users import Role, Users
from sluice.testing.client import OCI_MANIFEST, Answer, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

DIGEST = digest_of(HELD).encode()
LONG = b"a" * 300


NAMES = [
    b"..",
    b"../..",
    b"../../secret",
    b"app/../../secret",
    b"app/..",
    b".",
    b"./app",
    b"%2e%2e",
    b"%2e%2e/%2e%2e/secret",
    b"%2E%2E%2Fsecret",
    b"..%2f..%2fsecret",
    b"app%2f..%2f..%2fsecret",
    b"%252e%252e",
    b"app%00",
    b"app%00/../secret",
    b"app%0d%0aX:%201",
    b"app%0a",
    b"app%ff",
    b"app\xff",
    b"app%c0%af",
    b"app%ef%bf%bd",
    b"app%EF%BF%BD/x",
    b"app%",
    b"app%2",
    b"app%zz",
    b"/app",
    b"app//x",
    b"app/",
    b"App",
    b"app_",
    b"-app",
    b"a..b",
    b"a:b",
    b"a\\b",
    b"%5c%5csecret",
    "caf\u00e9".encode(),
    b"%e2%80%ae",
    LONG,
    LONG + b"/" + LONG,
    b"a/" * 150 + b"a",
]
ENDS = [b"/manifests/v1", b"/blobs/" + DIGEST, b"/tags/list", b"/referrers/" + DIGEST]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:30]))
def test_name_that_is_none(registry: SluiceServer, rude: RegistryClient, name: bytes) -> None:
    """No trick with a repository's name reads or writes anything: 400 or 404 with a code, and no new file."""
    before = files_of(registry)
    found = [rude.raw_path("GET", b"/v2/" + name + end) for end in ENDS]
    found.append(rude.raw_path("POST", b"/v2/" + name + b"/blobs/uploads/"))
    found.append(rude.raw_path("POST", b"/v2/" + name + b"/blobs/uploads/?digest=" + DIGEST, HELD))
    found.append(
        rude.raw_path("PUT", b"/v2/" + name + b"/manifests/v1", b"{}", b"Content-Type: " + OCI_MANIFEST.encode())
    )
    found.append(rude.raw_path("DELETE", b"/v2/" + name + b"/manifests/v1"))
    for answer in found:
        assert answer.status in {400, 404}, (name, answer)
        assert b"never to be served" not in answer.body
        if name.isascii():  # else the server library itself refuses the request, in its own words
            assert answer.codes[0] in {"NAME_INVALID", "NAME_UNKNOWN", "MANIFEST_INVALID", "UNSUPPORTED"}
    assert before == files_of(registry)


@pytest.mark.parametrize(
    "tag",
    [b"..", b"%2e%2e", b"..%2fv1", b".v1", b"-v1", b"v1%00", b"v%ff", b"a" * 129, LONG, b"v%201", b"v1%0a", b"%2fv1"],
)
def test_tag_that_is_none(registry: SluiceServer, rude: RegistryClient, tag: bytes) -> None:
    """A tag outside the grammar cannot be made nor found."""
    document = encoded(rude.image("app", [b"layer"]))
    before = files_of(registry)
    path, kind = b"/v2/app/manifests/" + tag, b"Content-Type: " + OCI_MANIFEST.encode()
    found = [rude.raw_path("PUT", path, document, kind), rude.raw_path("GET", path), rude.raw_path("DELETE", path)]
    assert {400} == {found[0].status}
    assert {answer.status for answer in found[1:]} <= {400, 404}
    assert before == files_of(registry)


@pytest.mark.parametrize(
    "digest",
    [
        b"sha256:",
        b"sha256:..",
        b"sha256:" + b"0" * 63,
        b"sha256:" + b"0" * 65,
        b"sha256:" + b"G" * 64,
        b"SHA256:" + b"0" * 64,
        b"sha512:" + b"0" * 64,
        b"sha1:" + b"0" * 40,
        b":",
        b"sha256:..%2f..%2f..%2fsecret",
        b"sha256:" + b"0" * 62 + b"%00",
    ],
    ids=ascii,
)
def test_digest_that_is_none(registry: SluiceServer, rude: RegistryClient, digest: bytes) -> None:
    """A malformed digest is refused wherever one is expected."""
    before = files_of(registry)
    places = [b"blobs/", b"manifests/", b"referrers/"]
    found = [rude.raw_path("GET", b"/v2/app/" + place + digest) for place in places]
    found.append(rude.raw_path("POST", b"/v2/app/blobs/uploads/?digest=" + digest, HELD))
    found.append(rude.raw_path("DELETE", b"/v2/app/blobs/" + digest))
    assert {400, 404} >= {answer.status for answer in found}
    assert {"DIGEST_INVALID", "NAME_INVALID", "UNSUPPORTED"} >= {answer.codes[0] for answer in found}
    assert before == files_of(registry)


@pytest.mark.parametrize(
    "session", [b"..", b"%2e%2e", b"..%2fsecret", b"0" * 31, b"0" * 32, b"G" * 32, LONG, b"%00"], ids=ascii
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_session_that_is_none(registry: SluiceServer, rude: RegistryClient, method: str, session: bytes) -> None:
    """An upload that nobody started is unknown, however it is spelt."""
    before = files_of(registry)
    answer = rude.raw_path(method, b"/v2/app/blobs/uploads/" + session + b"?digest=" + DIGEST, HELD)
    assert answer.status in {400, 404}
    assert answer.codes[0] in {"BLOB_UPLOAD_UNKNOWN", "NAME_INVALID"}
    assert before == files_of(registry)


AUTHORIZATIONS = [
    b"",
    b"Basic",
    b"Basic ",
    b"Basic !!!",
    b"Basic " + base64.b64encode(b"no colon"),
    b"Basic " + base64.b64encode(b"\xff\xfe:x"),
    b"Basic " + base64.b64encode(b"a\x00:b"),
    b"Bearer",
    b"Bearer x.y.z",
    b"Bearer " + b"a" * 7000,
    b"Digest username=x",
    b"\xff\xff",
    b"Basic " + b"A" * 9_000,
]


@pytest.mark.parametrize("value", AUTHORIZATIONS, ids=lambda value: ascii(value[:20]))
def test_bad_authorization(guarded: SluiceServer, value: bytes) -> None:
    """Where users are configured, credentials that prove nothing bring 401 with a challenge, never more."""
    client = RegistryClient(guarded)
    for path in (b"/v2/", b"/v2/app/manifests/v1", b"/v2/_catalog"):
        answer = client.raw_path("GET", path, b"", b"Authorization: " + value)
        assert (401, ["UNAUTHORIZED"]) == outcome(answer)
        assert answer.headers["www-authenticate"].startswith("Bearer realm=")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """A server with one user."""
    data = tmp_path_factory.mktemp("guarded") / "data"
    data.mkdir(mode=0o700)
    Users(data, cost=4).add("ann", "secret", Role.ADMIN, [])
    with SluiceServer(data) as running:
        yield running


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS", "TRACE", "POST", "PROPFIND", "get", "X" * 200])
def test_unknown_method(rude: RegistryClient, method: str) -> None:
    """A method that a path does not have is refused with 405 and those that it has, or as no HTTP at all."""
    answer = rude.raw_path(method, b"/v2/app/manifests/v1")
    assert answer.status in {400, 405}
    if answer.status == 405:
        assert "GET, HEAD, PUT, DELETE" == answer.headers["allow"]


NOWHERE = [
    b"/",
    b"/v1/",
    b"/v3/app",
    b"/v2/app",
    b"/v2/app/x",
    b"/%2e%2e/secret",
    b"/../secret",
    b"/%ff",
    b"/v2/_catalog/x",
    b"/metrics",
    b"/" + b"a" * 20_000,
    b"*",
    b"http://x/v2/../secret",
]


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: ascii(path[:20]))
def test_path_that_leads_nowhere(rude: RegistryClient, path: bytes) -> None:
    """A path outside the API is 400 or 404, whatever it looks like."""
    answer = rude.raw_path("GET", path)
    assert answer.status in {400, 404, 414, 431}
    assert b"never to be served" not in answer.body


PUT = b"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\n"
GET = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"
REQUESTS: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS inside TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "no version": b"GET /v2/\r\n\r\n",
    "version 9": b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
    "header without colon": GET + b"broken\r\n\r\n",
    "NUL in a header": GET + b"X: a\x00b\r\n\r\n",
    "two lengths": PUT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunked": PUT + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": PUT + b"Content-Length: -1\r\n\r\n",
    "length with text": PUT + b"Content-Length: 1x\r\n\r\na",
    "huge length": PUT + b"Content-Length: 99999999999999999999999\r\n\r\na",
    "broken chunk": PUT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "broken second chunk": PUT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nazz\r\n",
    "one header of 100 KiB": GET + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "1 MiB of headers": GET + b"".join(b"X%d: %s\r\n" % (n, b"a" * 1000) for n in range(1000)) + b"\r\n",
    "10,000 headers": GET + b"".join(b"X%d: a\r\n" % n for n in range(10_000)) + b"\r\n",
}


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS.keys())
def test_request_that_is_none(rude: RegistryClient, request_bytes: bytes) -> None:
    """What is not HTTP, or too much of it, is refused with 4xx or a closed connection, never with 5xx."""
    try:
        answer: Answer | None = rude.raw(request_bytes)
    except OSError:
        answer = None  # closed without a word, as the server library does with some
    assert answer is None or 400 <= answer.status < 500, answer


def test_header_fields_have_a_limit(rude: RegistryClient) -> None:
    """Beyond 64 KiB of header fields the answer says so with 431 (RFC 6585), below it they are no matter."""
    found = [rude.raw(GET + b"X: " + b"a" * size + b"\r\n\r\n") for size in (60_000, 100_000)]
    assert [200, 431] == [answer.status for answer in found]
    assert ["SIZE_INVALID"] == found[1].codes

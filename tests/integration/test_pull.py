"""Pulling from a running server over TLS, request by request (OCI Distribution Specification 1.1, "Pull")."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from integration.samples import chosen, described_headers, encoded, index_of, noise, outcome
from sluice.testing.client import OCI_INDEX, OCI_MANIFEST, OCTETS, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

ABSENT = digest_of(b"nobody ever pushed this")
BLOB = noise("ranges", 1000)


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_base_says_that_this_is_a_registry(client: RegistryClient, method: str, path: str) -> None:
    """GET and HEAD of /v2/ answer 200 with the API version that Docker's clients look for."""
    answer = client.request(method, path)
    assert (200, "registry/2.0") == (answer.status, answer.headers["docker-distribution-api-version"])
    assert answer.body == (b"{}" if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["tag", "sha256", "sha512"])
def test_manifest_by_every_kind_of_reference(client: RegistryClient, repository: str, kind: str, method: str) -> None:
    """A manifest answers by tag, sha256 and sha512 with its exact bytes and headers, also from memory."""
    raw = encoded(client.image(repository, [b"layer"]))
    algorithm = "sha512" if kind == "sha512" else "sha256"
    reference = "v1" if kind == "tag" else digest_of(raw, algorithm)
    client.push_manifest(repository, reference, raw)
    expected = described_headers(raw, OCI_MANIFEST, algorithm)
    for _ in range(3):
        answer = client.request(method, f"/v2/{repository}/manifests/{reference}")
        assert (200, expected) == (answer.status, chosen(answer.headers, expected))
        assert answer.body == (raw if method == "GET" else b"")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
        'application/vnd.oci.image.manifest.v1+json;charset="UTF-8" ; x=1',
        "Application/vnd.OCI.image.manifest.v1+JSON",
    ],
)
def test_content_type_comes_back_byte_for_byte(client: RegistryClient, repository: str, media_type: str) -> None:
    """What was sent as Content-Type is what GET and HEAD say, parameters, quotes and case included."""
    client.push_manifest(repository, "v1", client.image(repository, [b"layer"]), media_type)
    found = [
        client.request(method, f"/v2/{repository}/manifests/v1").headers["content-type"] for method in ("GET", "HEAD")
    ]
    assert [media_type, media_type] == found


def test_manifest_bytes_are_not_reformatted(client: RegistryClient, repository: str) -> None:
    """White space, key order and escapes of a manifest come back as they were pushed."""
    document = client.image(repository, [b"layer"], annotations={"note": "caf\u00e9 \u2603"})
    raw = b"\n" + json.dumps(document, indent=3, ensure_ascii=False).encode() + b" \r\n\t"
    digest = client.push_manifest(repository, "v1", raw)
    answer = client.request("GET", f"/v2/{repository}/manifests/{digest}")
    assert (raw, digest_of(raw)) == (answer.body, digest)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_blob_by_digest(client: RegistryClient, repository: str, algorithm: str, method: str) -> None:
    """A blob answers by either digest with exact length, entity tag and range support."""
    digest = digest_of(BLOB, algorithm)
    path = client.start_upload(repository)
    assert client.request("PUT", f"{path}?digest={digest}", BLOB).status == 201
    answer = client.request(method, f"/v2/{repository}/blobs/{digest}")
    expected = {**described_headers(BLOB, OCTETS, algorithm), "accept-ranges": "bytes"}
    assert (200, expected) == (answer.status, chosen(answer.headers, expected))
    assert answer.body == (BLOB if method == "GET" else b"")


def test_empty_blob(client: RegistryClient, repository: str) -> None:
    """A blob of no bytes can be pushed and pulled; no range of it can be satisfied."""
    digest = client.push_blob(repository, b"")
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}")
    assert (200, "0", b"") == (answer.status, answer.headers["content-length"], answer.body)
    ranged = client.request("GET", f"/v2/{repository}/blobs/{digest}", headers={"Range": "bytes=0-"})
    assert (416, "bytes */0") == (ranged.status, ranged.headers["content-range"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("{held}/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        (f"{{held}}/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"{{held}}/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("{absent}/manifests/v1", 404, "NAME_UNKNOWN"),
        (f"{{absent}}/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("{held}/blobs/sha256:123", 400, "DIGEST_INVALID"),
        ("{held}/manifests/sha256:123", 400, "DIGEST_INVALID"),
        (f"{{held}}/blobs/md5:{'0' * 32}", 400, "DIGEST_INVALID"),
        (f"{{held}}/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        ("{held}/Upper/manifests/v1", 400, "NAME_INVALID"),
        ("{held}/tags", 404, "UNSUPPORTED"),
    ],
)
def test_refusals_have_the_codes_of_the_specification(
    client: RegistryClient, repository: str, path: str, status: int, code: str
) -> None:
    """What cannot be had is refused with status and code in JSON, and for HEAD with the same headers and no body."""
    client.push_image(repository, "v1")
    target = "/v2/" + path.format(held=repository, absent=f"{repository}-absent")
    answer = client.request("GET", target)
    assert (status, [code]) == outcome(answer)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["errors"][0]["message"]
    if not path.endswith("/tags"):
        head = client.request("HEAD", target)
        assert (status, b"", answer.headers["content-length"]) == (
            head.status,
            head.body,
            head.headers["content-length"],
        )


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_identity_encoding_always(client: RegistryClient, repository: str, method: str) -> None:
    """Content is never compressed on the way, whatever the client accepts: its length and digest are its identity."""
    digest = client.push_image(repository, "v1", [BLOB])
    for path in (f"manifests/{digest}", f"blobs/{digest_of(BLOB)}"):
        answer = client.request(method, f"/v2/{repository}/{path}", headers={"Accept-Encoding": "gzip, br, zstd, *"})
        assert (200, None, None) == (
            answer.status,
            answer.headers.get("content-encoding"),
            answer.headers.get("transfer-encoding"),
        )


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=0-0", 0, 1),
        ("bytes=900-", 900, 1000),
        ("bytes=0-", 0, 1000),
        ("bytes=999-", 999, 1000),
        ("bytes=-100", 900, 1000),
        ("bytes=-5000", 0, 1000),
        ("bytes=500-5000", 500, 1000),
        ("BYTES=5-6", 5, 7),
    ],
)
def test_range_is_answered(client: RegistryClient, repository: str, wanted: str, start: int, end: int) -> None:
    """Single, open-ended and suffix ranges bring 206, exactly the bytes asked for and where they lie."""
    digest = client.push_blob(repository, BLOB)
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}", headers={"Range": wanted})
    expected = {"content-range": f"bytes {start}-{end - 1}/1000", "content-length": str(end - start)}
    assert (206, expected) == (answer.status, chosen(answer.headers, expected))
    assert answer.body == BLOB[start:end]


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=5000-6000", "bytes=-0", f"bytes={'9' * 40}-"])
def test_range_beyond_the_content(client: RegistryClient, repository: str, wanted: str) -> None:
    """A range with no byte in it is refused with 416 and the whole size."""
    digest = client.push_blob(repository, BLOB)
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}", headers={"Range": wanted})
    assert (416, "bytes */1000") == (answer.status, answer.headers["content-range"])


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "lines=0-1", "bytes=6-5", "bytes=-", "bytes=a-b", "bytes 0-1", ""])
def test_range_that_is_ignored(client: RegistryClient, repository: str, wanted: str) -> None:
    """Several ranges, other units and bad syntax bring the whole, as RFC 9110 section 14.2 allows."""
    digest = client.push_blob(repository, BLOB)
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}", headers={"Range": wanted})
    assert (200, BLOB, None) == (answer.status, answer.body, answer.headers.get("content-range"))


def test_range_on_head_is_ignored(client: RegistryClient, repository: str) -> None:
    """Range means something for GET only (RFC 9110 section 14.2)."""
    digest = client.push_blob(repository, BLOB)
    answer = client.request("HEAD", f"/v2/{repository}/blobs/{digest}", headers={"Range": "bytes=0-1"})
    assert (200, "1000") == (answer.status, answer.headers["content-length"])


@pytest.mark.parametrize(
    ("condition", "status"), [("{etag}", 206), ('"other"', 200), ("Mon, 01 Jan 2024 00:00:00 GMT", 200)]
)
def test_if_range(client: RegistryClient, repository: str, condition: str, status: int) -> None:
    """A range holds only while the content is what the client had part of (RFC 9110 section 13.1.5)."""
    digest = client.push_blob(repository, BLOB)
    headers = {"Range": "bytes=500-", "If-Range": condition.format(etag=f'"{digest}"')}
    answer = client.request("GET", f"/v2/{repository}/blobs/{digest}", headers=headers)
    assert (status, BLOB[500:] if status == 206 else BLOB) == (answer.status, answer.body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("place", ["manifests/v1", "manifests/{manifest}", "blobs/{blob}"])
def test_content_that_the_client_has_already(client: RegistryClient, repository: str, place: str, method: str) -> None:
    """If-None-Match with the digest brings 304 and no body; another tag brings the content."""
    manifest = client.push_image(repository, "v1", [BLOB])
    path = f"/v2/{repository}/{place.format(manifest=manifest, blob=digest_of(BLOB))}"
    etag = client.request(method, path).headers["etag"]
    found = []
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*", '"other"'):
        answer = client.request(method, path, headers={"If-None-Match": condition})
        found.append((answer.status, answer.headers["etag"]))
        assert answer.status == 200 or answer.body == b""
    assert [(304, etag)] * 4 + [(200, etag)] == found


def test_condition_on_what_is_not_there(client: RegistryClient, repository: str) -> None:
    """If-None-Match never hides that something is not there."""
    client.push_image(repository, "v1")
    for place in ("manifests/absent", f"manifests/{ABSENT}", f"blobs/{ABSENT}"):
        answer = client.request("GET", f"/v2/{repository}/{place}", headers={"If-None-Match": f'"{ABSENT}"'})
        assert answer.status == 404


def test_many_readers_of_a_large_blob(server: SluiceServer, client: RegistryClient, repository: str) -> None:
    """Readers at once, of the whole and of ranges, all get the right bytes of a blob of many slices."""
    data = noise("large", 8 << 20) + b"tail"
    digest = client.push_blob(repository, data)

    def read(start: int) -> str:
        reader = RegistryClient(server)
        answer = reader.request("GET", f"/v2/{repository}/blobs/{digest}", headers={"Range": f"bytes={start}-"})
        reader.close()
        return hashlib.sha256(answer.body).hexdigest()

    starts = [0, 1, 262_143, 262_144, 262_145, 5_000_000, len(data) - 1, 0]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, starts))
    assert [hashlib.sha256(data[start:]).hexdigest() for start in starts] == found


def test_index_and_its_images(client: RegistryClient, repository: str) -> None:
    """An index names images that are pulled by the digests in it."""
    images = [client.image(repository, [f"layer {number}".encode()]) for number in range(2)]
    for image in images:
        client.push_manifest(repository, digest_of(encoded(image)), image)
    client.push_manifest(repository, "multi", index_of(*images), OCI_INDEX)
    answer = client.request("GET", f"/v2/{repository}/manifests/multi")
    assert answer.headers["content-type"] == OCI_INDEX
    found = [
        client.request("GET", f"/v2/{repository}/manifests/{entry['digest']}").json
        for entry in answer.json["manifests"]
    ]
    assert images == found


def test_http2_does_the_same(server: SluiceServer, client: RegistryClient, repository: str) -> None:
    """Over HTTP/2 on the same port: push, pull, range, HEAD, conditional request and refusal."""
    manifest = client.image(repository, [b"base"])
    with httpx.Client(http2=True, verify=server.ssl_context(), base_url=server.url) as h2:
        digest = digest_of(BLOB)
        started = h2.post(f"/v2/{repository}/blobs/uploads/")
        pushed = h2.put(started.headers["location"], params={"digest": digest}, content=BLOB)
        named = h2.put(
            f"/v2/{repository}/manifests/v1", content=encoded(manifest), headers={"Content-Type": OCI_MANIFEST}
        )
        part = h2.get(f"/v2/{repository}/blobs/{digest}", headers={"Range": "bytes=-10"})
        tagged = h2.get(f"/v2/{repository}/manifests/v1")
        head = h2.head(f"/v2/{repository}/manifests/v1")
        same = h2.get(f"/v2/{repository}/manifests/v1", headers={"If-None-Match": tagged.headers["etag"]})
        absent = h2.get(f"/v2/{repository}/manifests/absent")
    answers = [started, pushed, named, part, tagged, head, same, absent]
    assert ["HTTP/2"] * len(answers) == [answer.http_version for answer in answers]
    assert [202, 201, 201, 206, 200, 200, 304, 404] == [answer.status_code for answer in answers]
    assert (BLOB[-10:], encoded(manifest), b"") == (part.content, tagged.content, head.content)
    assert head.headers["content-length"] == str(len(tagged.content))
    assert [error["code"] for error in absent.json()["errors"]] == ["MANIFEST_UNKNOWN"]

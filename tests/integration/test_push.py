"""Pushing blobs to a running server over TLS, in every way that the specification has ("Pushing blobs")."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from integration.samples import chosen, noise, outcome
from sluice.testing.client import OCTETS, Answer, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

DATA = noise("push", 300_000)
CHUNK = 100_000
Way = Callable[[RegistryClient, str, str], Answer]


def _uploads(repository: str) -> str:
    return f"/v2/{repository}/blobs/uploads/"


def _location(answer: Answer) -> str:
    assert answer.status == 202, (answer.status, answer.body)
    return urlsplit(answer.headers["location"]).path


def _session(client: RegistryClient, repository: str, digest: str) -> str:
    """Start a session that hashes with the algorithm of ``digest`` from the first byte."""
    algorithm = digest.partition(":")[0]
    return _location(client.request("POST", f"{_uploads(repository)}?digest-algorithm={algorithm}"))


def _chunks() -> Iterator[tuple[int, bytes]]:
    return ((start, DATA[start : start + CHUNK]) for start in range(0, len(DATA), CHUNK))


def patch(client: RegistryClient, path: str, start: int, chunk: bytes) -> Answer:
    """PATCH one chunk with its place."""
    return client.request(
        "PATCH", path, chunk, {"Content-Range": f"{start}-{start + len(chunk) - 1}", "Content-Type": OCTETS}
    )


def single_post(client: RegistryClient, repository: str, digest: str) -> Answer:
    return client.request("POST", f"{_uploads(repository)}?digest={digest}", DATA, {"Content-Type": OCTETS})


def post_then_put(client: RegistryClient, repository: str, digest: str) -> Answer:
    return client.request(
        "PUT", f"{_session(client, repository, digest)}?digest={digest}", DATA, {"Content-Type": OCTETS}
    )


def put_of_unknown_length(client: RegistryClient, repository: str, digest: str) -> Answer:
    path = _session(client, repository, digest)
    return client.request("PUT", f"{path}?digest={digest}", (part for _, part in _chunks()))


def one_patch(client: RegistryClient, repository: str, digest: str) -> Answer:
    path = _session(client, repository, digest)
    path = _location(client.request("PATCH", path, (part for _, part in _chunks())))
    return client.request("PUT", f"{path}?digest={digest}", b"")


def patches_with_place(client: RegistryClient, repository: str, digest: str) -> Answer:
    path = _session(client, repository, digest)
    for start, chunk in _chunks():
        answer = patch(client, path, start, chunk)
        assert answer.headers["range"] == f"0-{start + len(chunk) - 1}"
        path = _location(answer)
    return client.request("PUT", f"{path}?digest={digest}", b"")


def last_chunk_in_put(client: RegistryClient, repository: str, digest: str) -> Answer:
    path = _location(patch(client, _session(client, repository, digest), 0, DATA[:CHUNK]))
    return client.request("PUT", f"{path}?digest={digest}", DATA[CHUNK:], {"Content-Range": f"{CHUNK}-{len(DATA) - 1}"})


WAYS = [single_post, post_then_put, put_of_unknown_length, one_patch, patches_with_place, last_chunk_in_put]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_in(client: RegistryClient, repository: str, way: Way, algorithm: str) -> None:
    """Whatever the way and the digest's algorithm: 201 with location and digest, and the bytes can be read at once."""
    digest = digest_of(DATA, algorithm)
    answer = way(client, repository, digest)
    place = f"/v2/{repository}/blobs/{digest}"
    expected = {"location": place, "docker-content-digest": digest}
    assert (201, expected) == (answer.status, chosen(answer.headers, expected))
    assert client.request("GET", place).body == DATA


def test_algorithm_that_was_not_announced(client: RegistryClient, repository: str) -> None:
    """A session may end with a sha512 digest although it was not started with digest-algorithm."""
    digest = digest_of(DATA, "sha512")
    path = _location(client.request("PATCH", client.start_upload(repository), DATA))
    assert client.request("PUT", f"{path}?digest={digest}", b"").status == 201
    assert client.request("GET", f"/v2/{repository}/blobs/{digest}").body == DATA


def test_unknown_algorithm(client: RegistryClient, repository: str) -> None:
    """A digest-algorithm that the registry does not know is refused before a session is there."""
    assert (400, ["DIGEST_INVALID"]) == outcome(client.request("POST", f"{_uploads(repository)}?digest-algorithm=md5"))


def test_gap_and_overlap_leave_the_session_where_it_was(client: RegistryClient, repository: str) -> None:
    """A chunk that does not start where the session stands gets 416 with that place, and goes on from it."""
    path = _location(patch(client, client.start_upload(repository), 0, DATA[:CHUNK]))
    for start in (CHUNK + 1, CHUNK - 1, 0, 2 * CHUNK):
        answer = patch(client, path, start, DATA[start : start + CHUNK])
        assert (416, ["BLOB_UPLOAD_INVALID"]) == outcome(answer)
        assert (f"0-{CHUNK - 1}", path) == (answer.headers["range"], urlsplit(answer.headers["location"]).path)
    assert patch(client, path, CHUNK, DATA[CHUNK:]).status == 202
    assert client.request("PUT", f"{path}?digest={digest_of(DATA)}", b"").status == 201


def test_gap_in_the_last_chunk(client: RegistryClient, repository: str) -> None:
    """PUT with a chunk at the wrong place gets 416, and is accepted at the right one."""
    path = _location(patch(client, client.start_upload(repository), 0, DATA[:CHUNK]))
    target = f"{path}?digest={digest_of(DATA)}"
    wrong = client.request("PUT", target, DATA[CHUNK:], {"Content-Range": f"{CHUNK + 5}-{len(DATA) + 4}"})
    assert (416, f"0-{CHUNK - 1}") == (wrong.status, wrong.headers["range"])
    assert client.request("PUT", target, DATA[CHUNK:], {"Content-Range": f"{CHUNK}-{len(DATA) - 1}"}).status == 201


@pytest.mark.parametrize("place", ["5-4", "0-1023x", "bytes=0-9", "a-b", "-5", "0-8", "0-10"])
def test_bad_content_range(client: RegistryClient, repository: str, place: str) -> None:
    """A Content-Range that cannot be read, or spans another length than the body's ten bytes, changes nothing."""
    path = client.start_upload(repository)
    assert client.request("PATCH", path, b"0123456789", {"Content-Range": place}).status == 400
    assert client.request("GET", path).headers["range"] == "0-0"
    assert patch(client, path, 0, b"0123456789").status == 202


def test_status_tells_how_far_an_upload_is(client: RegistryClient, repository: str) -> None:
    """GET of a session answers 204 with Range and Location, without a body, before and after each chunk."""
    path = client.start_upload(repository)
    found = []
    for start, chunk in _chunks():
        answer = client.request("GET", path)
        found.append((answer.status, answer.headers["range"], answer.headers["location"], answer.body))
        patch(client, path, start, chunk)
    assert [(204, place, path, b"") for place in ("0-0", f"0-{CHUNK - 1}", f"0-{2 * CHUNK - 1}")] == found


def test_cancelled_upload_is_gone(client: RegistryClient, repository: str) -> None:
    """DELETE of a session answers 204; afterwards every request on it is BLOB_UPLOAD_UNKNOWN."""
    path = _location(patch(client, client.start_upload(repository), 0, DATA[:CHUNK]))
    assert client.request("DELETE", path).status == 204
    again = [
        client.request("GET", path),
        client.request("PATCH", path, b"x"),
        client.request("PUT", f"{path}?digest={digest_of(DATA)}", b""),
        client.request("DELETE", path),
    ]
    assert [(404, ["BLOB_UPLOAD_UNKNOWN"])] * 4 == [outcome(answer) for answer in again]


def test_session_of_another_repository(client: RegistryClient, repository: str) -> None:
    """A session is known in the repository that it was started in, and nowhere else."""
    identifier = client.start_upload(repository).rsplit("/", 1)[1]
    assert (404, ["BLOB_UPLOAD_UNKNOWN"]) == outcome(
        client.request("GET", f"{_uploads(repository + '/other')}{identifier}")
    )


@pytest.mark.parametrize("way", [single_post, post_then_put], ids=lambda way: way.__name__)
def test_wrong_digest_makes_nothing_visible(client: RegistryClient, repository: str, way: Way) -> None:
    """Bytes of another digest are refused with DIGEST_INVALID; neither digest can be read, and the session is gone."""
    wrong = digest_of(b"something else")
    assert (400, ["DIGEST_INVALID"]) == outcome(way(client, repository, wrong))
    found = [client.request("GET", f"/v2/{repository}/blobs/{digest}").status for digest in (wrong, digest_of(DATA))]
    assert [404, 404] == found


def test_put_without_a_digest(client: RegistryClient, repository: str) -> None:
    """A PUT that names no digest, or none that is one, is refused and the session stays as it was."""
    path = _location(patch(client, client.start_upload(repository), 0, DATA))
    for query in ("", "?digest=", "?digest=sha256:12", "?digest=latest"):
        assert (400, ["DIGEST_INVALID"]) == outcome(client.request("PUT", path + query, b""))
    assert client.request("PUT", f"{path}?digest={digest_of(DATA)}", b"").status == 201


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_upload_resumes_after_a_restart(tmp_path: Path, end: str) -> None:
    """A session outlives the server's end, by SIGTERM or SIGKILL, at its offset, and can be completed."""
    registry = SluiceServer(tmp_path / "data")
    with registry:
        client = RegistryClient(registry)
        path = _location(patch(client, client.start_upload("app"), 0, DATA[:CHUNK]))
        client.close()
        getattr(registry, end)()
        registry.start()
        offset = int(client.request("GET", path).headers["range"].partition("-")[2]) + 1
        assert offset == CHUNK
        assert patch(client, path, offset, DATA[offset:]).status == 202
        assert client.request("PUT", f"{path}?digest={digest_of(DATA)}", b"").status == 201
        assert client.request("GET", f"/v2/app/blobs/{digest_of(DATA)}").body == DATA
        client.close()


def test_mount_from_another_repository(client: RegistryClient, repository: str) -> None:
    """A blob of another repository is linked without its bytes, and is then readable here."""
    source = f"{repository}/source"
    digest = client.push_blob(source, DATA)
    answer = client.request("POST", f"{_uploads(repository)}?mount={digest}&from={source}")
    expected = {"location": f"/v2/{repository}/blobs/{digest}", "docker-content-digest": digest}
    assert (201, expected) == (answer.status, chosen(answer.headers, expected))
    assert client.request("GET", f"/v2/{repository}/blobs/{digest}").body == DATA


@pytest.mark.parametrize("query", ["mount={held}", "mount={held}&from={absent}", "mount={missing}&from={source}",
                                   "mount={held}&from=Not%20A%20Name"])  # fmt: skip
def test_mount_falls_back_to_an_upload(client: RegistryClient, repository: str, query: str) -> None:
    """Where there is nothing to mount, a session is opened instead, and the blob can be uploaded in it."""
    source = f"{repository}/source"
    values = {"held": client.push_blob(source, b"mine"), "missing": digest_of(DATA), "absent": f"{repository}/absent"}
    path = _location(client.request("POST", f"{_uploads(repository)}?{query.format(source=source, **values)}"))
    assert client.request("PUT", f"{path}?digest={digest_of(DATA)}", DATA).status == 201
    assert client.request("GET", f"/v2/{repository}/blobs/{values['held']}").status == 404


def test_same_blob_from_many_clients_at_once(server: SluiceServer, repository: str) -> None:
    """Pushes of one blob meet without harm: all are acknowledged, and the blob is whole."""

    def push(number: int) -> int:
        pusher = RegistryClient(server)
        answer = WAYS[number % len(WAYS)](pusher, f"{repository}/{number % 2}", digest_of(DATA))
        pusher.close()
        return answer.status

    with ThreadPoolExecutor(8) as pool:
        assert [201] * 16 == list(pool.map(push, range(16)))
    reader = RegistryClient(server)
    assert [DATA] * 2 == [reader.request("GET", f"/v2/{repository}/{n}/blobs/{digest_of(DATA)}").body for n in (0, 1)]
    reader.close()


def _until_blank_line(sock: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        octet = sock.recv(1)
        assert octet, found
        found += octet
    return found


def _expecting(client: RegistryClient, method: str, path: str, length: int, *more: str) -> tuple[socket.socket, bytes]:
    """Send the head of a request that waits for 100; returns the connection and the first response head."""
    connection = client.connect()
    connection.connect()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", "Expect: 100-continue", *more]
    sock: socket.socket = connection.sock
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    return sock, _until_blank_line(sock)


def test_client_that_waits_for_100_continue(client: RegistryClient, repository: str) -> None:
    """A client that asks first is told to go on, and its blob is taken."""
    target = f"{client.start_upload(repository)}?digest={digest_of(DATA)}"
    sock, interim = _expecting(client, "PUT", target, len(DATA))
    with sock:
        assert interim.startswith(b"HTTP/1.1 100 ")
        sock.sendall(DATA)
        assert _until_blank_line(sock).startswith(b"HTTP/1.1 201 ")


def test_client_that_waits_is_refused_without_its_body(client: RegistryClient, repository: str) -> None:
    """A manifest over the limit, announced with Expect, is refused before a byte of it was sent."""
    target, length = f"/v2/{repository}/manifests/v1", 64 << 20
    kind = "Content-Type: application/vnd.oci.image.manifest.v1+json"
    sock, final = _expecting(client, "PUT", target, length, kind)
    with sock:
        assert final.startswith(b"HTTP/1.1 413 ")

"""A data directory that is taken, too new, or damaged behind the server's back."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer

BLOB_BYTES = 32 << 20
START_BYTES = 1 << 20
BLOB = os.urandom(1 << 20) * (BLOB_BYTES >> 20)
OTHER = bytes(BLOB_BYTES)


def run_second(data: Path) -> subprocess.CompletedProcess[str]:
    """``sluice serve`` on ``data``, which is expected to end by itself."""
    return subprocess.run(
        SluiceServer(data, tls=False).command(), capture_output=True, text=True, timeout=60, check=False
    )


def content_file(server: SluiceServer, digest: str) -> Path:
    algorithm, hexadecimal = digest.split(":")
    return server.data / "content" / algorithm / hexadecimal[:2] / hexadecimal


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SluiceServer]:
    with SluiceServer(tmp_path / "data", tls=False) as running:
        yield running


@pytest.fixture
def client(server: SluiceServer) -> Iterator[RegistryClient]:
    with contextlib.closing(RegistryClient(server)) as speaker:
        yield speaker


def test_a_second_server_is_told_who_the_first_one_is(server: SluiceServer, client: RegistryClient) -> None:
    """It ends with a non-zero code and the first one's PID, and the first one goes on."""
    second = run_second(server.data)
    assert second.returncode == 1
    assert f"in use by process {server.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert client.request("GET", "/v2/").status == 200


def test_a_killed_servers_lock_means_nothing(server: SluiceServer) -> None:
    """After SIGKILL the lock file with its PID is still there and stops nobody."""
    server.kill()
    assert (server.data / "sluice.lock").read_text() == f"{server.pid}\n"
    server.start()
    assert server.stop() == 0


def test_a_newer_data_directory_is_refused_with_the_remedy(server: SluiceServer) -> None:
    """Neither a newer format nor a newer schema is opened, and nothing in it is touched."""
    assert server.stop() == 0
    (server.data / "VERSION").write_text("99\n")
    newer_format = run_second(server.data)
    assert newer_format.returncode == 1
    assert "format version 99" in newer_format.stderr
    assert "start the newer Sluice" in newer_format.stderr
    assert (server.data / "VERSION").read_text() == "99\n"
    (server.data / "VERSION").write_text("1\n")
    with contextlib.closing(sqlite3.connect(server.data / "index.sqlite")) as index:
        index.execute("PRAGMA user_version = 77")
    newer_schema = run_second(server.data)
    assert newer_schema.returncode == 1
    assert "schema version 77" in newer_schema.stderr
    assert "Traceback" not in newer_format.stderr + newer_schema.stderr


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_damaged_blob_is_an_error_and_pushing_it_again_heals_it(
    server: SluiceServer, client: RegistryClient, damage: str
) -> None:
    """A blob without its file, or without all of it, is answered with the spec's error and never with other bytes."""
    digest = client.push_blob("damaged", BLOB)
    if damage == "removed":
        content_file(server, digest).unlink()
    else:
        os.truncate(content_file(server, digest), START_BYTES)
    answer = client.request("GET", f"/v2/damaged/blobs/{digest}")
    assert answer.status == 500
    assert answer.codes == ["UNKNOWN"]
    assert "push it again" in answer.json["errors"][0]["message"]
    assert client.request("HEAD", f"/v2/damaged/blobs/{digest}").status == 404
    assert call(server.data / SOCKET_NAME, "fsck", {"repair": False})["clean"] is False  # type: ignore[index]
    assert client.push_blob("damaged", BLOB) == digest
    assert (
        hashlib.sha256(client.request("GET", f"/v2/damaged/blobs/{digest}").body).digest()
        == hashlib.sha256(BLOB).digest()
    )
    assert call(server.data / SOCKET_NAME, "fsck", {"repair": False})["clean"] is True  # type: ignore[index]


def test_other_bytes_of_the_same_length_are_found_by_fsck(server: SluiceServer, client: RegistryClient) -> None:
    """Bits that rot keep a file's length: the check of the store names the digest, and a repair takes it out."""
    digest = client.push_blob("damaged", BLOB)
    content_file(server, digest).write_bytes(OTHER)
    report = call(server.data / SOCKET_NAME, "fsck", {"repair": False})
    assert isinstance(report, dict)
    assert report["clean"] is False
    assert digest.split(":")[1] in str(report)
    call(server.data / SOCKET_NAME, "fsck", {"repair": True})
    assert client.request("GET", f"/v2/damaged/blobs/{digest}").status == 404


def test_a_manifest_with_other_bytes_is_not_served(server: SluiceServer, client: RegistryClient) -> None:
    """Manifests are verified whenever they come from the disk: other bytes are an error, not a 200."""
    digest = client.push_image("damaged", "tag")
    path = content_file(server, digest)
    path.write_bytes(path.read_bytes().replace(b"amd64", b"arm64").replace(b"layers", b"lawyer"))
    server.kill()  # forgets the manifests that it has in memory
    server.start()
    for reference in ("tag", digest):
        answer = client.request("GET", f"/v2/damaged/manifests/{reference}")
        assert answer.status == 500
        assert answer.codes == ["UNKNOWN"]


def start_reading(client: RegistryClient, digest: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A GET of which the first ``START_BYTES`` have been read."""
    connection = client.connect()
    connection.request("GET", f"/v2/damaged/blobs/{digest}")
    response = connection.getresponse()
    assert response.status == 200
    assert response.read(START_BYTES) == BLOB[:START_BYTES]
    return connection, response


def test_a_file_that_vanishes_while_it_is_sent_is_sent_whole(server: SluiceServer, client: RegistryClient) -> None:
    """An open file outlives its name: whoever has begun to read gets every byte."""
    digest = client.push_blob("damaged", BLOB)
    connection, response = start_reading(client, digest)
    with contextlib.closing(connection), response:
        content_file(server, digest).unlink()
        assert response.read() == BLOB[START_BYTES:]


def test_a_file_cut_while_it_is_sent_ends_the_connection_short(server: SluiceServer, client: RegistryClient) -> None:
    """The reader sees an incomplete body, of true bytes only; others go on."""
    digest = client.push_blob("damaged", BLOB)
    connection, response = start_reading(client, digest)
    with contextlib.closing(connection), response:
        os.kill(server.pid, signal.SIGSTOP)  # so that the cut comes before the last slices are read, however fast
        os.truncate(content_file(server, digest), BLOB_BYTES // 2)
        os.kill(server.pid, signal.SIGCONT)
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
    received = BLOB[:START_BYTES] + caught.value.partial
    assert len(received) < BLOB_BYTES
    assert received == BLOB[: len(received)]
    assert client.request("GET", "/v2/").status == 200

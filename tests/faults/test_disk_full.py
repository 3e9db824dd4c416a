"""A disk without room: writers are told, readers notice nothing, and room is all that it takes to go on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.client import OCTETS, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

DISK_BYTES = 64 << 20
RESERVE_BYTES = 8 << 20
LAYER = os.urandom(1 << 20)
NOTICE_S = 10.0  # readiness is looked at once a second
REFUSED = {503, 507}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of ``DISK_BYTES`` of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            written = file.write(bytes(1 << 20))
            if written < 1 << 20:  # the last write is cut short, the next one fails
                file.write(bytes(4096))


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def contents(data: Path) -> set[str]:
    """The names of all content files."""
    return {path.name for path in (data / "content").rglob("*") if path.is_file()}


def wait_for_write_readiness(server: SluiceServer, status: int) -> None:
    deadline = time.monotonic() + NOTICE_S
    while server.operations("/readyz?write")[0] != status:
        assert time.monotonic() < deadline, f"/readyz?write never became {status}"
        time.sleep(0.1)


def assert_refuses_writes(client: RegistryClient, manifest: dict[str, object]) -> None:
    """Blobs whole and in sessions, and manifests, get 507 or 503 with the spec's error document."""
    digest = digest_of(b"unwanted" * 100_000)
    url = f"/v2/full/blobs/uploads/?digest={digest}"
    blob = client.request("POST", url, b"unwanted" * 100_000, {"Content-Type": OCTETS})
    raw = json.dumps(manifest).encode()
    tag = client.request("PUT", "/v2/full/manifests/another", raw, {"Content-Type": str(manifest["mediaType"])})
    for answer in (blob, tag):
        assert answer.status in REFUSED, (answer.status, answer.body)
        assert answer.codes == ["UNAVAILABLE"]
        assert "free disk space" in answer.json["errors"][0]["message"]
    assert client.request("HEAD", f"/v2/full/blobs/{digest}").status == 404
    assert client.request("GET", "/v2/full/manifests/another").status == 404


def assert_reads(server: SluiceServer, client: RegistryClient, digest: str) -> None:
    """The image from before is served whole, and the server says that it can serve."""
    assert digest_of(client.request("GET", "/v2/full/manifests/tag").body) == digest
    assert client.request("GET", f"/v2/full/blobs/{digest_of(LAYER)}").body == LAYER
    assert client.request("GET", "/v2/full/tags/list").json == {"name": "full", "tags": ["tag"]}
    assert server.operations("/readyz")[0] == 200


def assert_writes_again(client: RegistryClient, manifest: dict[str, object]) -> str:
    client.push_blob("full", b"welcome" * 100_000)
    return client.push_manifest("full", "another", manifest)


def assert_whole(server: SluiceServer, client: RegistryClient, digests: dict[str, str]) -> None:
    """After a restart too, every tag is where it was acknowledged, and a check finds nothing wrong."""
    assert server.stop() == 0
    server.start()
    for tag, digest in digests.items():
        assert digest_of(client.request("GET", f"/v2/full/manifests/{tag}").body) == digest
    report = call(server.data / SOCKET_NAME, "fsck", {"repair": False})
    assert isinstance(report, dict)
    assert report["clean"], report


def test_a_full_disk_stops_writers_only(disk: Path) -> None:
    """ENOSPC in the middle of anything: 507 or 503 to the writer, reads go on, and after space returns so do writes."""
    with (
        SluiceServer(disk / "data", "--no-log-access", tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        pushed = client.push_image("full", "tag", [LAYER])
        manifest = client.image("full", [LAYER], annotations={"written": "later"})
        before = contents(server.data)
        fill(disk / "filler")
        assert free_bytes(disk) == 0
        assert_refuses_writes(client, manifest)
        assert_reads(server, client, pushed)
        wait_for_write_readiness(server, 503)
        assert contents(server.data) == before
        (disk / "filler").unlink()
        again = assert_writes_again(client, manifest)
        wait_for_write_readiness(server, 200)
        assert_whole(server, client, {"tag": pushed, "another": again})


def test_an_upload_that_fills_the_disk_can_be_finished_later(disk: Path) -> None:
    """What fitted is kept: the session stands where the answer to its status says, and goes on when there is room."""
    with (
        SluiceServer(disk / "data", "--no-log-access", tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        body = os.urandom(24 << 20)
        (disk / "filler").write_bytes(bytes(free_bytes(disk) - (16 << 20)))
        session = client.start_upload("full")
        answer = client.request("PATCH", session, body, {"Content-Type": OCTETS})
        assert answer.status in REFUSED, (answer.status, answer.body)
        assert contents(server.data) == set()
        (disk / "filler").unlink()
        status = client.request("GET", session)
        assert status.status == 204
        offset = int(status.headers["range"].split("-")[1]) + 1
        assert 8 << 20 < offset < len(body)
        url = f"{session}?digest={digest_of(body)}"
        rest = {"Content-Type": OCTETS, "Content-Range": f"{offset}-{len(body) - 1}"}
        assert client.request("PUT", url, body[offset:], rest).status == 201
        assert client.request("GET", f"/v2/full/blobs/{digest_of(body)}").body == body


def test_the_reserve_stops_writers_before_the_disk_does(disk: Path) -> None:
    """At ``storage.reserve_bytes`` writers are refused and readers are not; above it everything goes on."""
    with (
        SluiceServer(disk / "data", "--storage-reserve-bytes", str(RESERVE_BYTES), tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        pushed = client.push_image("full", "tag", [LAYER])
        manifest = client.image("full", [LAYER], annotations={"written": "later"})
        before = contents(server.data)
        assert server.operations("/readyz?write")[0] == 200
        (disk / "filler").write_bytes(bytes(free_bytes(disk) - RESERVE_BYTES + (1 << 20)))
        wait_for_write_readiness(server, 503)
        assert_refuses_writes(client, manifest)
        assert_reads(server, client, pushed)
        assert contents(server.data) == before
        (disk / "filler").unlink()
        wait_for_write_readiness(server, 200)
        again = assert_writes_again(client, manifest)
        assert_whole(server, client, {"tag": pushed, "another": again})


def test_a_full_disk_is_what_it_claims(disk: Path) -> None:
    """The disk of these tests really has no room: writing to it fails with ENOSPC."""
    fill(disk / "filler")
    with pytest.raises(OSError, match="No space left") as caught, (disk / "more").open("wb", buffering=0) as file:
        file.write(b"x")
    assert caught.value.errno == errno.ENOSPC

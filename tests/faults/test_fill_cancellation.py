"""Whatever is cut off in a cold pull, at whatever stage: no task, no file, no byte and no open file is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.street import REPOSITORY, House, check_whole, contents, pulls, wait_until
from sluice.oci.digest import Digest
from sluice.testing.client import RegistryClient
from sluice.testing.server import STOP_S, SluiceServer
from sluice.testing.upstreams import Cut, Fault, Slow, Stall, UpstreamContent, UpstreamServer, blobs

STAGES = 40
STAGE_S = 0.004
BLOB_BYTES = 300_000
BYTES_PER_S = 2_000_000
HALF = 400_000
"""Where the upstream stops, in a layer of a million bytes."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A server of the test's own before an upstream with one image."""
    with UpstreamServer(UpstreamContent()) as upstream:
        flags = ("--mode", "proxy", "--upstream", upstream.address, "--limits-drain-s", "1")
        with SluiceServer(tmp_path / "data", *flags, tls=False) as sluice:
            one = House(sluice, "", upstream)
            yield one
            check_whole(sluice)
            assert "Traceback" not in sluice.log.read_text("utf-8", "replace")


def path_of(digest: Digest) -> str:
    return f"{REPOSITORY}/blobs/{digest}"


def open_spools(sluice: SluiceServer) -> list[str]:
    """Files of the data directory's content that the process holds open."""
    found = []
    for link in Path(f"/proc/{sluice.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(link)
            if f"{sluice.data}/uploads/" in target or f"{sluice.data}/content/" in target:
                found.append(target)
    return found


def metric(sluice: SluiceServer, name: str) -> float:
    lines = sluice.operations("/metrics")[1].splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def wait_quiet(sluice: SluiceServer) -> None:
    """Until nothing is fetched any more, and nothing is open."""
    names = ("sluice_cache_fills_active", "sluice_cache_fills_queued", "sluice_uploads_open")
    wait_until(lambda: [0, 0, 0] == [metric(sluice, name) for name in names], "no fill runs")
    wait_until(lambda: [] == open_spools(sluice), "no file of a fill is open")


def ask(sluice: SluiceServer, digest: Digest) -> socket.socket:
    """Send a request for a blob, and read nothing."""
    sock = socket.create_connection(("127.0.0.1", sluice.port), timeout=10)
    sock.sendall(f"GET /v2/{path_of(digest)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


def test_readers_leave_at_every_stage(house: House) -> None:
    """Each fill that began ends well, by one request to the upstream, though its reader has left."""
    house.spoil(Slow(BYTES_PER_S, when=blobs))
    data = random.Random(1).randbytes(BLOB_BYTES + STAGES)
    digests = [house.upstream.content.hold_blob(REPOSITORY, data[stage:]) for stage in range(STAGES)]
    for stage, digest in enumerate(digests):
        with ask(house.sluice, digest):
            time.sleep(stage * STAGE_S)
    wait_quiet(house.sluice)
    assert {0, 1} >= {house.upstream.gets(digest) for digest in digests}
    begun = [digest for digest in digests if house.upstream.gets(digest)]
    assert len(begun) > STAGES // 2
    assert {digest.hex for digest in begun} == contents(house.sluice).keys()
    assert [data[stage:] for stage in range(STAGES)] == [pulls(house.sluice, path_of(one)).body for one in digests]


@pytest.mark.parametrize("stall", [Stall(when=blobs), Stall(HALF, when=blobs)], ids=["before the head", "in the body"])
def test_the_server_is_stopped(house: House, stall: Fault) -> None:
    """SIGTERM with a reader that cannot be served: its body ends short, the exit code is 0, no spool is left; after a
    restart the blob comes whole."""
    house.spoil(stall)
    with ask(house.sluice, house.digest) as sock:
        house.upstream.wait_for(lambda: bool(house.upstream.gets(house.digest)))
        assert 0 == house.sluice.stop()
        received = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert len(received) < len(house.layer)
    check_whole(house.sluice)
    assert {} == contents(house.sluice)
    house.spoil()
    house.sluice.start()
    assert house.layer == house.blob().body


def test_the_server_is_stopped_without_readers(house: House) -> None:
    """A fill that nobody waits for does not hold up the end."""
    house.spoil(Stall(HALF, when=blobs))
    with ask(house.sluice, house.digest):  # who leaves before it is heard begins nothing
        house.upstream.wait_for(lambda: bool(house.upstream.gets(house.digest)))
    os.kill(house.sluice.pid, signal.SIGTERM)
    assert house.sluice.process is not None
    assert 0 == house.sluice.process.wait(STOP_S)
    check_whole(house.sluice)
    house.spoil()
    house.sluice.start()


@pytest.mark.parametrize("reader", [True, False])
def test_the_server_is_killed(house: House, reader: bool) -> None:
    """SIGKILL in mid-fill: after a restart the spool is gone, nothing of the blob is visible, and it comes whole."""
    house.spoil(Stall(HALF, when=blobs))
    with ask(house.sluice, house.digest) as sock:
        house.upstream.wait_for(lambda: bool(house.upstream.gets(house.digest)))
        if not reader:
            sock.close()
        wait_until(lambda: [] != open_spools(house.sluice), "the fill writes")
        house.sluice.kill()
    house.sluice.start()
    check_whole(house.sluice)
    assert {} == contents(house.sluice)
    house.spoil()
    assert house.layer == house.blob().body


def test_the_upstream_returns_in_mid_fill(house: House) -> None:
    """It goes down while a reader waits, and comes back: the reader notices nothing, and no byte comes twice."""
    house.spoil(Stall(HALF, when=blobs))
    with contextlib.closing(RegistryClient(house.sluice).connect()) as connection:
        connection.request("GET", f"/v2/{path_of(house.digest)}")
        response = connection.getresponse()
        head = response.read(BLOB_BYTES // 2)
        house.upstream.stop()
        house.spoil()
        house.upstream.start()
        assert house.layer == head + response.read()
    assert 1 == metric(house.sluice, "sluice_cache_resumes_total")
    wait_quiet(house.sluice)


def test_the_upstream_does_not_return(house: House) -> None:
    """The reader's body ends short, the fill gives up, and all it had is gone."""
    house.spoil(Cut(HALF, when=blobs), Cut(before_head=True, when=lambda request: "range" in request.headers))
    seen = house.blob()
    assert (200, "short") == (seen.status, seen.ended)
    wait_quiet(house.sluice)
    assert {} == contents(house.sluice)

"""The order of system calls of a push: nothing is acknowledged before it would survive a power cut.

And of a fill: nothing is entered in the index before.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from faults.seeded import SeededServer
from faults.street import PLAIN, REPOSITORY, TAG, wait_until
from faults.syscalls import STRACE, durability_violations, fill_violations, parse
from sluice.testing.client import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, OCTETS, RegistryClient, descriptor, digest_of
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")

CONFIG = b'{"architecture": "amd64", "os": "linux"}'
LAYER = b"layer" * 100_000
DOCUMENT = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": descriptor(CONFIG, OCI_CONFIG),
    "layers": [descriptor(LAYER, OCI_LAYER)],
}
TRACE_END_S = 10.0


def push_under_strace(server: SluiceServer, trace: Path) -> list[str]:
    """Start on an empty directory, push two blobs in different ways and a manifest; the digests in that order."""
    server.start((*STRACE, str(trace)))
    client = RegistryClient(server)
    try:
        digests = [digest_of(CONFIG), digest_of(LAYER)]
        answer = client.request(
            "POST", f"/v2/durable/blobs/uploads/?digest={digests[0]}", CONFIG, {"Content-Type": OCTETS}
        )
        assert answer.status == 201
        session = client.start_upload("durable")
        assert client.request("PATCH", session, LAYER[:300_000], {"Content-Type": OCTETS}).status == 202
        assert client.request("PUT", f"{session}?digest={digests[1]}", LAYER[300_000:]).status == 201
        raw = json.dumps(DOCUMENT).encode()
        # Where the index lags behind (a seeded defect), it first has to learn of the blobs.
        while client.request("HEAD", f"/v2/durable/blobs/{digests[1]}").status != 200:
            time.sleep(0.05)
        digests.append(client.push_manifest("durable", "tag", raw))
    finally:
        client.close()
        server.stop()
    wait_for_end(trace)
    return digests


def wait_for_end(trace: Path) -> None:
    """The tracer runs beside the server (``-D``) and writes its last line after the server's end."""
    deadline = time.monotonic() + TRACE_END_S
    while "+++ exited with 0 +++" not in trace.read_text("utf-8", "replace").splitlines()[-1]:
        assert time.monotonic() < deadline, "the trace has no end"
        time.sleep(0.05)


def violations(server: SluiceServer, trace: Path) -> list[str]:
    digests = push_under_strace(server, trace)
    return durability_violations(parse(trace.read_text("utf-8", "replace")), server.data, digests)


def test_a_push_is_durable_before_it_is_acknowledged(tmp_path: Path) -> None:
    """File fsync, rename, directory fsync and index fsync come in this order before each 201, also the first one."""
    assert violations(SluiceServer(tmp_path / "data", tls=False), tmp_path / "trace") == []


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("no-file-fsync", "its file was not fsynced between the last write and the rename"),
        ("late-file-fsync", "its file was not fsynced between the last write and the rename"),
        ("no-directory-fsync", "its directory was not fsynced between rename and the 201"),
        ("no-index-fsync", "the index was not fsynced between its write and the 201"),
        ("early-acknowledgement", "the index was not written between the directory's fsync and the 201"),
    ],
)
def test_the_trace_shows_a_seeded_defect(tmp_path: Path, defect: str, complaint: str) -> None:
    """A server that skips or delays one step is found out by the same check, for blobs and manifests alike."""
    found = violations(SeededServer(tmp_path / "data", defect=defect), tmp_path / "trace")
    assert [complaint] * 3 == [one.split(": ", 1)[1] for one in found]


def fill_under_strace(upstream: UpstreamServer, trace: Path, make: Callable[..., SluiceServer]) -> list[str]:
    """Start a cache on an empty directory, and pull an image through it; what was not durable when it was entered."""
    layers = [upstream.content.hold_blob(REPOSITORY, data) for data in (CONFIG, LAYER)]
    manifest = upstream.content.push_image(REPOSITORY, TAG, [CONFIG, LAYER])
    server = make(trace.parent / "data", "--mode", "proxy", "--upstream", upstream.address)
    server.start((*STRACE, str(trace)))
    client = RegistryClient(server)
    try:
        for path in (f"manifests/{TAG}", *(f"blobs/{digest}" for digest in layers)):
            assert client.request("GET", f"/v2/{REPOSITORY}/{path}").status == 200
        for digest in layers:
            path = f"/v2/{REPOSITORY}/blobs/{digest}"
            wait_until(lambda path=path: "hit" == origin(client, path), f"{path} is kept")  # type: ignore[misc]
    finally:
        client.close()
        server.stop()
    wait_for_end(trace)
    return fill_violations(parse(trace.read_text("utf-8", "replace")), server.data, [str(manifest), *map(str, layers)])


def origin(client: RegistryClient, path: str) -> str:
    return client.request("GET", path).headers["sluice-cache"].partition(";")[0]


def test_a_fill_is_durable_before_it_is_entered(tmp_path: Path) -> None:
    """What a cache fetched is fsynced, renamed and its directory fsynced before the index names it."""
    with UpstreamServer(UpstreamContent()) as upstream:
        assert fill_under_strace(upstream, tmp_path / "trace", PLAIN) == []


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("no-file-fsync", "its file was not fsynced between the last write and the rename"),
        ("late-file-fsync", "its file was not fsynced between the last write and the rename"),
        ("no-directory-fsync", "its directory was not fsynced between rename and the end"),
        ("no-index-fsync", "the index was not fsynced between its write and the end"),
    ],
)
def test_the_trace_of_a_fill_shows_a_seeded_defect(tmp_path: Path, defect: str, complaint: str) -> None:
    """A cache that skips or delays one step is found out, for blobs and manifests alike."""
    with UpstreamServer(UpstreamContent()) as upstream:
        found = fill_under_strace(upstream, tmp_path / "trace", partial(SeededServer, defect=defect))
    assert [complaint] * 3 == [one.split(": ", 1)[1] for one in found]

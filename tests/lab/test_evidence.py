"""What proves where a layer came from: the runtime's growing file and the replicas' access logs."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from integration.runtimes import containerd_before

from lab.clusters import wait_until
from lab.isolated import NAME, needs_lab
from sluice.lab.cri import pull
from sluice.lab.evidence import Sending, received, sendings, sent_by_victim
from sluice.lab.images import Ballast, Destination, build_image, find_busybox, push
from sluice.testing.server import SluiceServer

SIZE = 64 << 20
WAIT_S = 20.0
LOG = """2026-11-25T14:00:00.000Z 200 GET /v2/a/blobs/sha256:{a}?ns=x 100B 1.0ms 10.77.0.101 - "containerd/1.6"
2026-11-25T14:00:00.001Z 206 GET /v2/b/blobs/sha256:{a} 40B 12.3ms 10.77.0.102 - "containerd/1.6"
2026-11-25T14:00:00.002Z 200 HEAD /v2/a/blobs/sha256:{a} 0B 1.0ms 10.77.0.101 - "containerd/1.6"
2026-11-25T14:00:00.003Z 200 GET /v2/a/blobs/sha256:{b} 7B 1.0ms 10.77.0.101 - "containerd/1.6"
2026-11-25T14:00:00.004Z warning something else happened
"""


def test_the_rest_of_a_blob_tells_what_the_victim_sent() -> None:
    """Only GETs of the blob count, and only the rest (206) stands for a request that broke off elsewhere."""
    log = LOG.format(a="a" * 64, b="b" * 64)
    found = sendings(log, f"sha256:{'a' * 64}")
    assert [Sending(200, 100, "10.77.0.101"), Sending(206, 40, "10.77.0.102")] == found
    assert 60 == sent_by_victim(100, found)


@needs_lab
def test_a_layer_is_watched_while_it_comes(tmp_path: Path) -> None:
    """Nothing at first, something in the middle, all of it at the end; the server's log has it as one answer."""
    build_image(tmp_path / "layout", find_busybox(), "1", [Ballast(SIZE)])
    layer = max((tmp_path / "layout/blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    digest, size = f"sha256:{layer.name}", layer.stat().st_size
    assert layer.name == hashlib.sha256(layer.read_bytes()).hexdigest()
    with SluiceServer(tmp_path / "data") as server, containerd_before(server, NAME) as containerd:
        push(tmp_path / "layout", "1", Destination(f"127.0.0.1:{server.port}/team/app", server.ca))
        place = containerd.place
        assert 0 == received(place, digest)
        with ThreadPoolExecutor(1) as pool:
            pulling = pool.submit(pull, place.socket, f"{NAME}/team/app:1")
            wait_until(lambda: received(place, digest) > 0)
            assert received(place, digest) <= size
            pulling.result(WAIT_S)
        assert size == received(place, digest)
        wait_until(lambda: [Sending(200, size, "127.0.0.1")] == sendings(server.log.read_text(), digest))

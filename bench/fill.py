"""The same content in every peer before a clock starts: pushed to a registry, placed where files are served."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.content import MANIFEST_TYPE, Blob, Image
from bench.load import Clients, blob_path, manifest_path
from bench.peers import Peer
from bench.wire import BenchError

TAG = "latest"


def hold_blob(clients: Clients, peer: Peer, blob: Blob) -> None:
    """Make ``blob`` downloadable from ``peer`` at ``blob_path``, and check by a download that it is."""
    if peer.webroot is None:
        clients.push_blobs(peer, [blob])
    else:
        shutil.copyfile(blob.path, _target(peer, blob_path(blob)))
    clients.verify(peer, blob)


def hold_image(clients: Clients, peer: Peer, image: Image) -> None:
    """Make ``image`` available from ``peer`` as ``TAG``."""
    if peer.webroot is not None:
        _target(peer, manifest_path(TAG)).write_bytes(image.manifest)
        return
    for blob in (image.config, *image.layers):
        clients.push_blobs(peer, [blob])
    connection = peer.connect()
    connection.request("PUT", manifest_path(TAG), image.manifest, {"Content-Type": MANIFEST_TYPE}).expect(201)
    answer = connection.request("GET", manifest_path(TAG), headers={"Accept": MANIFEST_TYPE}).expect(200)
    connection.close()
    if answer.body != image.manifest:
        raise BenchError(f"{peer.name} sent another manifest than was pushed: {answer.body[:300]!r}")


def _target(peer: Peer, path: str) -> Path:
    assert peer.webroot is not None
    target = peer.webroot / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target

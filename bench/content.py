"""What is pushed and pulled: blobs of random bytes and the manifests that name them.

Random bytes neither compress nor deduplicate, as layers do not. Everything is made before a clock starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
MIB = 1024 * 1024
_PIECE_BYTES = 8 * MIB


@dataclass(frozen=True)
class Blob:
    """A file of content and its digest."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """A config, layers and the manifest over them. ``manifest`` is the exact bytes."""

    config: Blob
    layers: tuple[Blob, ...]
    manifest: bytes

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest_of(self.manifest)


def digest_of(data: bytes) -> str:
    """The sha256 digest in the OCI notation."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def random_blob(path: Path, size: int) -> Blob:
    """Write ``size`` random bytes to ``path``."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, _PIECE_BYTES):
            piece = os.urandom(min(_PIECE_BYTES, size - start))
            hasher.update(piece)
            file.write(piece)
    return Blob(path, "sha256:" + hasher.hexdigest(), size)


def random_image(directory: Path, layers: int, layer_bytes: int) -> Image:
    """An image of ``layers`` random layers; its files lie in ``directory``, which is made."""
    directory.mkdir()
    blobs = tuple(random_blob(directory / f"layer{number}", layer_bytes) for number in range(layers))
    rootfs = {"type": "layers", "diff_ids": [blob.digest for blob in blobs]}
    body = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    path = directory / "config"
    path.write_bytes(body)
    config = Blob(path, digest_of(body), len(body))
    return Image(config, blobs, _manifest(config, blobs))


def _manifest(config: Blob, layers: tuple[Blob, ...]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, config),
        "layers": [_descriptor(LAYER_TYPE, layer) for layer in layers],
    }
    return json.dumps(document, indent=2).encode()


def _descriptor(media_type: str, blob: Blob) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

"""An OCI layout with a multi-layer image for several platforms, for clients to push."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from integration.samples import noise
from sluice.lab.images import Layout
from sluice.testing.client import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLATFORMS = ("amd64", "arm64")
LAYERS = 3
LAYER_BYTES = 200_000


def archive(name: str, data: bytes) -> bytes:
    """A tar with one file, which depends on nothing else."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return raw.getvalue()


def multi_platform(directory: Path, tag: str) -> str:
    """Write an index over ``PLATFORMS`` images of ``LAYERS`` layers; returns its digest. The first layer is shared."""
    layout = Layout(directory)
    entries = [
        {**layout.add_json(image(layout, cpu), OCI_MANIFEST), "platform": {"architecture": cpu, "os": "linux"}}
        for cpu in PLATFORMS
    ]
    index = layout.add_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, OCI_INDEX)
    layout.finish(index, tag)
    return str(index["digest"])


def image(layout: Layout, cpu: str) -> dict[str, object]:
    """Add one platform's config and layers; returns its manifest, not added."""
    tars = [archive(f"file{n}", noise(("shared" if n == 0 else cpu, n), LAYER_BYTES)) for n in range(LAYERS)]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    config = {"architecture": cpu, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add_json(config, OCI_CONFIG),
        "layers": [layout.add(gzip.compress(tar, mtime=0), LAYER_GZIP) for tar in tars],
    }


def contents(directory: Path) -> dict[str, bytes]:
    """Every blob of a layout by its name, which is its digest."""
    return {path.name: path.read_bytes() for path in (directory / "blobs" / "sha256").iterdir()}


def named(directory: Path) -> list[str]:
    """The digests that a layout's index names."""
    return [entry["digest"] for entry in json.loads((directory / "index.json").read_text())["manifests"]]

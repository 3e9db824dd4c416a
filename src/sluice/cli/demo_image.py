"""The demo's image: a small, real OCI image for two platforms, written as an OCI layout that skopeo can push.

OCI Image Specification 1.1: image-layout.md, image-index.md, manifest.md, config.md, layer.md. Built from one static
busybox, so that it runs anywhere and needs no network. Everything is written reproducibly: a second build has the same
digests, and pushing it again finds everything there already.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLATFORMS = ("amd64", "arm64")
CREATED = "2026-01-01T00:00:00Z"
APPLETS = ("sh", "ash", "cat", "date", "echo", "hostname", "ls", "ps", "sleep", "uname", "wc")
HELLO = """#!/bin/sh
echo "Hello from a container whose every byte came out of Sluice."
echo "kernel $(uname -r), machine $(uname -m), $(wc -c </bin/busybox) bytes of busybox"
"""

Descriptor = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Layer:
    descriptor: Descriptor
    diff_id: str


class Layout:
    """An OCI layout being written into ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Write a blob; returns its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, document: object, media_type: str) -> Descriptor:
        """Write a document as a blob; returns its descriptor."""
        return self.add(json.dumps(document, indent=2).encode(), media_type)

    def finish(self, image: Descriptor, tag: str) -> None:
        """Write the files that make the directory a layout with one image in it."""
        named = {**image, "annotations": {"org.opencontainers.image.ref.name": tag}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}
        (self._directory / "index.json").write_text(json.dumps(index), encoding="utf-8")
        (self._directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")


def machine_architecture() -> str:
    """This machine's architecture in OCI's words (GOARCH)."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def build_image(directory: Path, busybox: Path, tag: str) -> str:
    """Write the image into ``directory`` and return the digest of its index.

    The image of this machine's architecture runs; those of the others hold the shared layer only, for there is but one
    busybox at hand.
    """
    layout = Layout(directory)
    shared = _add_layer(layout, {"hello": (HELLO.encode(), 0o755), "etc/passwd": (b"root:x:0:0::/:/bin/sh\n", 0o644)})
    program = _add_layer(layout, {"bin/busybox": (busybox.read_bytes(), 0o755)}, APPLETS)
    here = machine_architecture()
    manifests = []
    for architecture in dict.fromkeys((here, *PLATFORMS)):
        layers = [program, shared] if architecture == here else [shared]
        manifest = _add_manifest(layout, architecture, layers)
        manifests.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    index = layout.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)
    layout.finish(index, tag)
    return str(index["digest"])


def _add_manifest(layout: Layout, architecture: str, layers: list[_Layer]) -> Descriptor:
    config = {
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh", "/hello"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": "sluice demo"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add_json(config, CONFIG),
        "layers": [layer.descriptor for layer in layers],
    }
    return layout.add_json(manifest, MANIFEST)


def _add_layer(layout: Layout, files: dict[str, tuple[bytes, int]], applets: tuple[str, ...] = ()) -> _Layer:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({parent for path in files for parent in _parents(path)}):
            archive.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
        for name, (data, mode) in files.items():
            entry = _entry(name, tarfile.REGTYPE, mode)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for applet in applets:
            link = _entry(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            link.linkname = "busybox"
            archive.addfile(link)
    tar = raw.getvalue()
    descriptor = layout.add(gzip.compress(tar, mtime=0), LAYER)
    return _Layer(descriptor, f"sha256:{hashlib.sha256(tar).hexdigest()}")


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents if str(parent) != "."]


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """An entry of nobody's time and root's, so that the archive depends on its content alone."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry

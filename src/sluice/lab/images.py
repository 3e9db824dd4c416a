"""The laboratory's images: small, real, for two platforms, written as OCI layouts and pushed with skopeo.

OCI Image Specification 1.1: image-layout.md, image-index.md, manifest.md, config.md, layer.md. Built from one static
busybox, so that they run anywhere and need no network. Everything is written reproducibly: a second build has the same
digests, and pushing it again finds everything there already. Ballast is a layer of bytes that nothing can compress, as
long as a test needs it to hit the middle of a layer.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import platform
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.programs import run_step
from sluice.pki.durable import errors_named

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
PLATFORMS = ("amd64", "arm64")
CREATED = "2026-01-01T00:00:00Z"
APPLETS = ("sh", "ash", "cat", "date", "echo", "hostname", "ls", "ps", "sleep", "uname", "wc")
HELLO = """#!/bin/sh
echo "Hello from a container whose every byte came out of Sluice."
echo "kernel $(uname -r), machine $(uname -m), $(wc -c </bin/busybox) bytes of busybox"
"""

BALLAST_PIECE = 1 << 20
COMMAND = ("/bin/sh", "/hello")
PAUSE = ("/bin/sleep", "2147483647")

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

    def add_pieces(self, pieces: Iterable[bytes], media_type: str) -> Descriptor:
        """Write a blob that comes in pieces; returns its descriptor."""
        digest, size = hashlib.sha256(), 0
        with tempfile.NamedTemporaryFile(dir=self._blobs, delete=False) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        Path(file.name).rename(self._blobs / digest.hexdigest())
        return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}

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


def find_busybox() -> Path:
    """The static busybox that images are made of. Raises Unavailable."""
    found = shutil.which("busybox")
    if found is None:
        raise Unavailable("busybox is not installed: run make setup, or install the Debian package busybox-static")
    return Path(found)


@dataclass(frozen=True, slots=True)
class Ballast:
    """A layer of ``size`` bytes; another ``seed`` makes other bytes."""

    size: int
    seed: int = 0


def build_image(
    directory: Path, busybox: Path, tag: str, ballast: Sequence[Ballast] = (), command: Sequence[str] = COMMAND
) -> str:
    """Write the image into ``directory`` and return the digest of its index.

    The image of this machine's architecture runs; those of the others hold the shared layer only, for there is but one
    busybox at hand.
    """
    layout = Layout(directory)
    shared = _add_layer(layout, {"hello": (HELLO.encode(), 0o755), "etc/passwd": (b"root:x:0:0::/:/bin/sh\n", 0o644)})
    program = _add_layer(layout, {"bin/busybox": (busybox.read_bytes(), 0o755)}, APPLETS)
    heavy = [_add_ballast(layout, one, f"ballast-{at}") for at, one in enumerate(ballast)]
    here = machine_architecture()
    manifests = []
    for architecture in dict.fromkeys((here, *PLATFORMS)):
        layers = [program, shared, *heavy] if architecture == here else [shared]
        manifest = _add_manifest(layout, architecture, layers, command)
        manifests.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    index = layout.add_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)
    layout.finish(index, tag)
    return str(index["digest"])


def write_image(directory: Path, tag: str, ballast: Sequence[Ballast] = ()) -> str:
    """``build_image`` into a directory that is new and, should anything fail, is not made. Raises ConfigInvalid,
    StorageFull or Unavailable."""
    busybox = find_busybox()
    if directory.exists():
        raise ConfigInvalid(f"{directory} exists already: name a directory that does not, or remove it")
    with (
        errors_named(directory, "written"),
        tempfile.TemporaryDirectory(prefix=".image-", dir=directory.parent) as aside,
    ):
        digest = build_image(Path(aside, "layout"), busybox, tag, ballast)
        Path(aside, "layout").rename(directory)
    return digest


def build_pause(directory: Path, busybox: Path, tag: str) -> str:
    """Write an image that does nothing until it is ended, as a pod's sandbox does; returns the digest of its index."""
    return build_image(directory, busybox, tag, command=PAUSE)


def _add_manifest(layout: Layout, architecture: str, layers: list[_Layer], command: Sequence[str]) -> Descriptor:
    config = {
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command), "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": "sluice lab"} for _ in layers],
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


def _add_ballast(layout: Layout, ballast: Ballast, name: str) -> _Layer:
    descriptor = layout.add_pieces(_ballast_tar(ballast, name), PLAIN_LAYER)
    return _Layer(descriptor, str(descriptor["digest"]))


def _ballast_tar(ballast: Ballast, name: str) -> Iterator[bytes]:
    """An archive with one file, a piece at a time (pax(1): blocks of 512 bytes, two of them empty at the end)."""
    entry = _entry(name, tarfile.REGTYPE, 0o644)
    entry.size = ballast.size
    yield entry.tobuf(tarfile.PAX_FORMAT)
    source, left = random.Random(ballast.seed), ballast.size
    while left:
        piece = source.randbytes(min(left, BALLAST_PIECE))
        left -= len(piece)
        yield piece
    yield bytes(-ballast.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in Path(path).parents if str(parent) != "."]


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    """An entry of nobody's time and root's, so that the archive depends on its content alone."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry


@dataclass(frozen=True, slots=True)
class Destination:
    """Where images are pushed to. ``repository`` is ``host:port/name``; ``prefix`` takes skopeo into a network from
    where the registry can be reached; ``ca`` vouches for it, and without one it speaks plain HTTP."""

    repository: str
    ca: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    prefix: tuple[str, ...] = ()


def push(layout: Path, tag: str, to: Destination) -> None:
    """Copy the image ``tag`` of a layout, every platform of it, to a registry. Raises Unavailable."""
    # Beside the layout, so that nothing is left elsewhere when we are killed.
    with tempfile.TemporaryDirectory(prefix="sluice-push-", dir=layout.parent) as scratch:
        copy = [*to.prefix, "skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]
        if to.ca is None:
            copy += ["--dest-tls-verify=false"]
        else:
            # The directory may hold nothing else: skopeo takes a certificate's key from beside it.
            certificates = Path(scratch, "certificates")
            certificates.mkdir()
            shutil.copyfile(to.ca, certificates / "ca.crt")
            copy += ["--dest-cert-dir", str(certificates)]
        if to.user is not None:
            copy += ["--dest-authfile", str(_auth_file(Path(scratch, "auth.json"), to))]
        run_step([*copy, f"oci:{layout}:{tag}", f"docker://{to.repository}:{tag}"])


def _auth_file(path: Path, to: Destination) -> Path:
    """containers-auth.json(5), in a directory of ours alone: a command line would be everybody's to read."""
    login = base64.b64encode(f"{to.user}:{to.password}".encode()).decode()
    path.write_text(json.dumps({"auths": {to.repository.partition("/")[0]: {"auth": login}}}), encoding="utf-8")
    return path

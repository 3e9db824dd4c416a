"""Content that the suites push: documents as bytes, indexes, artifacts, Docker images, and the checks on them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sluice.oci.mediatype import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
)
from sluice.testing.client import Answer, RegistryClient, descriptor, digest_of
from sluice.testing.server import SluiceServer

Document = dict[str, Any]
EMPTY_CONFIG = b"{}"
HELD = b"held"
"""What the server of the bad input suites has in its repository ``app``."""


def encoded(document: object) -> bytes:
    """The bytes that ``RegistryClient.push_manifest`` sends for a document."""
    return json.dumps(document).encode()


def noise(seed: object, size: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


def described(document: Document) -> Document:
    """The descriptor of a manifest that is pushed by ``push_manifest``."""
    return descriptor(encoded(document), document["mediaType"])


def index_of(*manifests: Document, kind: str = OCI_INDEX, **more: object) -> Document:
    """An index over manifests, each with a platform of its own."""
    entries = [
        {**described(manifest), "platform": {"os": "linux", "architecture": f"cpu{number}"}}
        for number, manifest in enumerate(manifests)
    ]
    return {"schemaVersion": 2, "mediaType": kind, "manifests": entries, **more}


def artifact_of(subject: Document | None, artifact_type: str, **more: object) -> Document:
    """An artifact manifest with the empty config (image spec, "Guidelines for Artifact Usage"), which is not pushed."""
    empty = descriptor(EMPTY_CONFIG, OCI_EMPTY)
    base = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": empty,
        "layers": [empty],
    }
    return {**base, **({} if subject is None else {"subject": described(subject)}), **more}


def docker_image(client: RegistryClient, repository: str, seed: object = 0) -> Document:
    """Push the blobs of a Docker schema 2 image and return its manifest, unpushed."""
    config, layer = encoded({"architecture": "amd64", "os": "linux", "seed": str(seed)}), noise(seed, 500)
    for data in (config, layer):
        client.push_blob(repository, data)
    return {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(config, DOCKER_CONFIG),
        "layers": [descriptor(layer, DOCKER_LAYER)],
    }


def docker_list(*manifests: Document) -> Document:
    """A Docker manifest list."""
    return index_of(*manifests, kind=DOCKER_LIST)


def described_headers(raw: bytes, media_type: str, algorithm: str = "sha256") -> dict[str, str]:
    """The headers that GET and HEAD of a manifest or blob must have."""
    digest = digest_of(raw, algorithm)
    return {
        "content-type": media_type,
        "content-length": str(len(raw)),
        "docker-content-digest": digest,
        "etag": f'"{digest}"',
    }


def chosen(headers: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """The headers that are also in ``wanted``, for a comparison that names the differing one."""
    return {name: headers.get(name) for name in wanted}


def outcome(answer: Answer) -> tuple[int, list[str]]:
    """Status and error codes of a refusal."""
    return answer.status, answer.codes


def files_of(registry: SluiceServer) -> set[Path]:
    """Everything below the data directory that holds content or uploads."""
    return {path for folder in ("content", "uploads") for path in (registry.data / folder).rglob("*") if path.is_file()}

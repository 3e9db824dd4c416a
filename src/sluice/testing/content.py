"""Content for tests: bodies, blobs, images and indexes made of real bytes, and ``refused`` to expect an error.

For the conformance functions and for every test that needs something to push.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

from sluice.errors import SluiceError
from sluice.oci.content import Descriptor, Sink
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from sluice.oci.reference import Repository


class Refusal:
    """The error that ``refused`` caught."""

    error: SluiceError


@contextmanager
def refused(*kinds: type[SluiceError]) -> Iterator[Refusal]:
    """Assert that the block raises one of ``kinds``."""
    caught = Refusal()
    try:
        yield caught
    except kinds as error:
        caught.error = error
    else:
        raise AssertionError(f"nothing was raised, expected {' or '.join(kind.__name__ for kind in kinds)}")


def new_repository() -> Repository:
    """A repository name that nobody has used."""
    return Repository(f"conformance/{secrets.token_hex(8)}")


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    """A request body that ends well."""
    for chunk in chunks:
        yield chunk


async def broken_body(*chunks: bytes) -> AsyncIterator[bytes]:
    """A request body whose client goes away after ``chunks``."""
    for chunk in chunks:
        yield chunk
    raise ConnectionResetError("the client went away")


async def push_blob(sink: Sink, repository: Repository, data: bytes, algorithm: str = "sha256") -> Descriptor:
    """Push a blob through the ``Sink`` contract."""
    writer = await sink.begin_blob(repository)
    await writer.write([data])
    return await writer.commit(Digest.of(data, algorithm))


def image(config: bytes, *layers: bytes, algorithm: str = "sha256", **members: object) -> Manifest:
    """An OCI image manifest that names blobs with these contents; ``members`` go into the document as they are."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": named(OCI_CONFIG, config),
        "layers": [named(OCI_LAYER, layer) for layer in layers],
        **members,
    }
    return Manifest.parse(json.dumps(document).encode(), OCI_MANIFEST, algorithm)


def index(*manifests: Manifest) -> Manifest:
    """An OCI image index that names these manifests."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [named(one.media_type, one.raw) for one in manifests],
    }
    return Manifest.parse(json.dumps(document).encode(), OCI_INDEX)


def named(media_type: str, data: bytes) -> Mapping[str, object]:
    """A descriptor of ``data``, as a manifest spells it."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}

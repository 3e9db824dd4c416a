"""Media types: which content types name manifests, indexes and layers. PURE.

``oci.manifest`` decides by these what a manifest may hold, the server what it accepts and serves. Sources: OCI Image
Specification 1.1 (media-types.md) and Docker Image Manifest Version 2, Schema 2 ("Media Types").
"""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

# Layers that their publisher does not let registries hand out; a push leaves them out.
NON_DISTRIBUTABLE = frozenset(
    {
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        DOCKER_FOREIGN_LAYER,
    }
)
_FOREIGN_MARKS = (".foreign.", ".nondistributable.")


def essence(media_type: str) -> str:
    """The type without its parameters, lower-case (RFC 9110 section 8.3.1: it is case-insensitive)."""
    return media_type.partition(";")[0].strip().lower()


def is_index(media_type: str) -> bool:
    """An OCI index or a Docker manifest list; parameters and case do not matter."""
    return essence(media_type) in INDEXES


def is_manifest(media_type: str) -> bool:
    """Anything that lives under ``/manifests/``: an image manifest or an index."""
    return essence(media_type) in MANIFESTS or is_index(media_type)


def is_foreign(media_type: str, *, has_urls: bool) -> bool:
    """A layer that is accepted as a reference only.

    The registered non-distributable types are so by name; other types that call themselves foreign only where they
    say with ``urls`` whence the bytes come instead.
    """
    kind = essence(media_type)
    return kind in NON_DISTRIBUTABLE or (has_urls and any(mark in kind for mark in _FOREIGN_MARKS))

"""Which content types name manifests, indexes and foreign layers."""

from __future__ import annotations

import pytest

from sluice.oci import mediatype
from sluice.oci.mediatype import essence, is_foreign, is_index, is_manifest


@pytest.mark.parametrize(
    ("media_type", "index", "manifest"),
    [
        (mediatype.OCI_MANIFEST, False, True),
        (mediatype.DOCKER_MANIFEST, False, True),
        (mediatype.OCI_INDEX, True, True),
        (mediatype.DOCKER_LIST, True, True),
        (mediatype.OCI_INDEX.upper() + " ; charset=utf-8", True, True),
        (mediatype.OCI_CONFIG, False, False),
        (mediatype.OCI_EMPTY, False, False),
        ("application/vnd.docker.distribution.manifest.v1+json", False, False),
        ("application/json", False, False),
        ("", False, False),
    ],
)
def test_manifest_types_are_known_whatever_their_case_and_parameters(
    media_type: str, index: bool, manifest: bool
) -> None:
    """An index is a manifest, an image manifest is no index, and nothing else is either."""
    assert (index, manifest) == (is_index(media_type), is_manifest(media_type))


def test_essence_drops_parameters_and_case() -> None:
    """What is compared is the part before the semicolon, in lower case."""
    assert essence(" Text/Plain ; charset=UTF-8; x=y") == "text/plain"


@pytest.mark.parametrize(
    ("media_type", "has_urls", "foreign"),
    [
        *((name, False, True) for name in sorted(mediatype.NON_DISTRIBUTABLE)),
        *((name, True, True) for name in sorted(mediatype.NON_DISTRIBUTABLE)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", True, True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", False, False),
        ("application/vnd.oci.image.layer.nondistributable.v2.tar", True, True),
        (mediatype.OCI_LAYER_GZIP, True, False),
        (mediatype.DOCKER_LAYER, False, False),
    ],
)
def test_foreign_layers_are_known_by_type_and_else_by_type_and_urls(
    media_type: str, has_urls: bool, foreign: bool
) -> None:
    """An ordinary layer stays required even if it has urls; a self-styled foreign one is so only with them."""
    assert foreign == is_foreign(media_type, has_urls=has_urls)

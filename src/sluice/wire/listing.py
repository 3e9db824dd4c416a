"""Listings as JSON: tags, the catalog and referrers (OCI Distribution Specification 1.1). PURE.

``server.listing`` chooses the page; here it gets its bytes. All in ASCII, so that any text that is stored renders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sluice.oci.content import Referrer
from sluice.oci.mediatype import OCI_INDEX


def render_tags(repository: str, tags: Iterable[str]) -> bytes:
    """``{"name":…,"tags":[…]}`` (spec: "Listing Tags"); an empty page is an empty array, not null."""
    return _json({"name": repository, "tags": list(tags)})


def render_catalog(repositories: Iterable[str]) -> bytes:
    """``{"repositories":[…]}``, Docker Registry HTTP API V2, "Listing Repositories"."""
    return _json({"repositories": list(repositories)})


def render_referrers(referrers: Iterable[Referrer]) -> bytes:
    """An OCI index with one descriptor for each referrer (spec: "Listing Referrers")."""
    manifests = [_descriptor(referrer) for referrer in referrers]
    return _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def _descriptor(referrer: Referrer) -> dict[str, object]:
    """``artifactType`` and ``annotations`` are left out where the manifest has none."""
    described = referrer.descriptor
    entry: dict[str, object] = {
        "mediaType": described.media_type,
        "digest": str(described.digest),
        "size": described.size,
    }
    if referrer.artifact_type is not None:
        entry["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        entry["annotations"] = referrer.annotations
    return entry


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")

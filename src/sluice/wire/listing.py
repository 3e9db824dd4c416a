"""Listings as JSON: tags, the catalog and referrers (OCI Distribution Specification 1.1). PURE.

``server.listing`` chooses the page; here it gets its bytes. All in ASCII, so that any text that is stored renders.
``upstream`` reads the pages of others with the second half.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sluice.errors import DigestInvalid, ManifestInvalid, NameInvalid
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import OCI_INDEX
from sluice.oci.reference import Tag, parse_tag


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


def parse_tags(body: bytes) -> tuple[Tag, ...]:
    """The tags of one page, as they come; raises ManifestInvalid where it is no page of tags.

    ``null`` is an empty list: it is how Go writes one. What is no tag is left out, since nobody could ask for it.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ManifestInvalid("the list of tags is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("tags") or [], list):
        raise ManifestInvalid("the list of tags is not an object with an array of tags")
    return tuple(tag for tag in map(_tag, document.get("tags") or []) if tag is not None)


def _tag(value: object) -> Tag | None:
    try:
        return parse_tag(value) if isinstance(value, str) else None
    except NameInvalid:
        return None


def parse_referrers(body: bytes) -> tuple[Referrer, ...]:
    """The entries of one page, as they come; raises ManifestInvalid where it is no OCI index.

    ``artifactType`` and ``annotations`` are those that the index gives, which Manifest's view does not keep.
    """
    Manifest.parse(body, OCI_INDEX)  # bounds and checks everything that is used below
    return tuple(_referrer(entry) for entry in json.loads(body)["manifests"])


def _referrer(entry: dict[str, object]) -> Referrer:
    media_type, digest, size = entry["mediaType"], entry["digest"], entry["size"]
    kind, annotations = entry.get("artifactType"), entry.get("annotations")
    try:
        described = Descriptor(str(media_type), Digest.parse(str(digest)), int(str(size)))
    except (DigestInvalid, ValueError):
        raise ManifestInvalid("an entry of the index has no digest or size") from None
    return Referrer(
        described,
        kind if isinstance(kind, str) and kind else None,
        dict(annotations) if isinstance(annotations, dict) else {},
    )


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

"""Manifests of one address: resolved, fetched, and believed only where their bytes are those of their digest."""

from __future__ import annotations

import json

from sluice.errors import DigestInvalid, ManifestInvalid, ManifestUnknown, NameUnknown, SluiceError, UpstreamInvalid
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import ACCEPTED, is_manifest
from sluice.oci.reference import Reference, Repository
from sluice.upstream.endpoint import Endpoint
from sluice.upstream.exchange import Request, Response
from sluice.wire.problem import parse_errors

ACCEPT = ", ".join(ACCEPTED)
"""One value: some registries read only the first of several headers."""

_NOT_FOUND = frozenset({404})
_NO_HEAD = frozenset({404, 405, 501})


def pull_scope(name: Repository) -> str:
    """What reading a repository needs (Docker "Token Scope Documentation")."""
    return f"repository:{name}:pull"


async def resolve(endpoint: Endpoint, repository: Repository, reference: Reference) -> Descriptor:
    """By HEAD, or by GET where HEAD does not tell enough; raises ManifestUnknown, NameUnknown or an UpstreamError."""
    name = endpoint.address.repository(repository)
    response = await endpoint.send(_request(endpoint, "HEAD", name, reference), pull_scope(name), _NO_HEAD)
    with response:
        if response.status == 404:
            raise await _unknown(endpoint, response, name, reference)
        digest = _told_digest(response) or (reference if isinstance(reference, Digest) else None)
        media_type = response.header("content-type") or ""
        if response.status == 200 and digest is not None and response.length is not None and is_manifest(media_type):
            if isinstance(reference, Digest):
                check_digest_header(response, reference)
                digest = reference
            return Descriptor(media_type, digest, response.length)
    # Where the type is wrong, the bytes decide: some registries know it only from them.
    manifest = await fetch(endpoint, repository, reference)
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))


async def fetch(endpoint: Endpoint, repository: Repository, reference: Reference) -> Manifest:
    """By GET, verified; raises ManifestUnknown, NameUnknown or an UpstreamError."""
    name = endpoint.address.repository(repository)
    response = await endpoint.send(_request(endpoint, "GET", name, reference), pull_scope(name), _NOT_FOUND)
    with response:
        if response.status == 404:
            raise await _unknown(endpoint, response, name, reference)
        told = _told_digest(response)
        raw = await response.whole(endpoint.transport.limits.manifest_bytes)
        wanted = reference if isinstance(reference, Digest) else told or Digest.of(raw)
        if Digest.of(raw, wanted.algorithm) != wanted:
            raise UpstreamInvalid(f"{response.target.shown} answers with other bytes than those of {wanted}")
        try:
            return Manifest.parse(raw, _media_type(response, raw), wanted.algorithm)
        except ManifestInvalid as error:
            raise UpstreamInvalid(
                f"{response.target.shown} answers with what is no manifest: {error.message}"
            ) from None


def check_digest_header(response: Response, digest: Digest) -> None:
    """Where an answer says which content it is, it is the wanted one; raises UpstreamInvalid."""
    told = _told_digest(response)
    if told is not None and told != digest and told.algorithm == digest.algorithm:
        raise UpstreamInvalid(f"{response.target.shown} is asked for {digest} and answers with {told}")


def _request(endpoint: Endpoint, method: str, name: Repository, reference: Reference) -> Request:
    return Request(method, endpoint.transport.target(f"/v2/{name}/manifests/{reference}"), {"Accept": ACCEPT})


def _told_digest(response: Response) -> Digest | None:
    text = response.header("docker-content-digest")
    try:
        return None if text is None else Digest.parse(text.strip())
    except DigestInvalid:
        return None


def _media_type(response: Response, raw: bytes) -> str:
    """As it was sent; where that is no manifest's, what the document says of itself."""
    sent = response.header("content-type") or ""
    if is_manifest(sent):
        return sent
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return sent
    told = document.get("mediaType") if isinstance(document, dict) else None
    return told if isinstance(told, str) else sent


async def _unknown(endpoint: Endpoint, response: Response, name: Repository, reference: Reference) -> SluiceError:
    body = await response.start(endpoint.transport.limits.error_body_bytes)
    if any(error.code == NameUnknown.code for error in parse_errors(body)):
        return NameUnknown(f"repository {name} is unknown to the upstream {endpoint.address}")
    return ManifestUnknown(f"manifest {reference} is unknown in {name} of the upstream {endpoint.address}")

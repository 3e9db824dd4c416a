"""Manifests: GET, HEAD, PUT and DELETE by tag or digest (spec: "Pulling manifests", "Pushing Manifests")."""

from __future__ import annotations

import time

from sluice.cache.answers import Fetched
from sluice.errors import ManifestInvalid, ManifestUnknown, StoreDamaged
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.reference import Reference, Repository
from sluice.server.access import Action
from sluice.server.exchange import API_VERSION, SERVER, Exchange, Headers
from sluice.server.hot import HotManifest, hot_key
from sluice.server.registry import Registry
from sluice.store.local import LocalStore
from sluice.wire.etag import digest_etag, none_match


def _target(x: Exchange) -> tuple[Repository, Reference]:
    assert x.route.repository is not None
    assert x.route.reference is not None
    return x.route.repository, x.route.reference


def _headers(descriptor: Descriptor) -> Headers:
    digest = str(descriptor.digest)
    return [
        (b"content-type", descriptor.media_type.encode("latin-1")),
        (b"content-length", b"%d" % descriptor.size),
        (b"docker-content-digest", digest.encode()),
        (b"etag", digest_etag(descriptor.digest).encode()),
    ]


def _describe(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.raw))


def _keep(x: Exchange, fetched: Fetched[Manifest], generation: int) -> None:
    """Leave the answer in memory for the next one who asks, for as long as it may be given again."""
    key = hot_key(x.scope["raw_path"], x.scope["query_string"])
    if key and fetched.fresh_s > 0:
        prepared = _prepared(_target(x)[0], fetched.value, x.wiring.marked_hot(fetched))
        prepared.until = time.perf_counter() + fetched.fresh_s
        x.wiring.hot.keep(key, prepared, generation)


def _prepared(repository: Repository, manifest: Manifest, marks: Headers) -> HotManifest:
    headers = [SERVER, API_VERSION, *marks, *_headers(_describe(manifest))]
    return HotManifest(
        repository=repository,
        digest=manifest.digest,
        etag=digest_etag(manifest.digest).encode(),
        start={"type": "http.response.start", "status": 200, "headers": headers},
        body={"type": "http.response.body", "body": manifest.raw, "more_body": False},
        size=len(manifest.raw),
    )


async def get(_: Registry, x: Exchange) -> None:
    """GET or HEAD. What a GET read stays in memory for the next one."""
    repository, reference = _target(x)
    wiring = x.wiring
    generation = wiring.hot.begin(repository)
    condition = x.text_header(b"if-none-match")
    if x.method == "HEAD" or condition is not None:
        described = await wiring.fetcher.fetch_descriptor(repository, reference)
        x.marks, descriptor = wiring.marked(described.provenance), described.value
        if x.method == "HEAD" and wiring.sink is not None and x.principal.allows(Action.PUSH, repository):
            descriptor = await _touched(wiring.sink, repository, reference, descriptor)
        if none_match(condition, descriptor.digest):
            await x.respond_unmodified(_headers(descriptor))
            return
        if x.method == "HEAD":
            await x.start(200, _headers(descriptor))
            await x.send(b"", more=False)
            return
    fetched = await wiring.fetcher.fetch_named(repository, reference)
    x.marks = wiring.marked(fetched.provenance)
    _keep(x, fetched, generation)
    await x.start(200, _headers(_describe(fetched.value)))
    await x.send(fetched.value.raw, more=False)


async def _touched(
    store: LocalStore, repository: Repository, reference: Reference, descriptor: Descriptor
) -> Descriptor:
    """A writer's HEAD counts as use: it is how a push finds out what it need not send. Touched first, then looked at
    again (``store.touches``); raises ManifestUnknown where GC has just condemned it, and where its file is damaged, so
    that the push which follows brings it back."""
    if not store.touch(repository, descriptor.digest):
        raise ManifestUnknown(f"manifest {reference} is unknown in {repository}")
    found = await store.resolve(repository, reference)
    try:
        await store.manifest(repository, found.digest)
    except StoreDamaged:
        raise ManifestUnknown(f"manifest {reference} of {repository} is damaged in this store: push it again") from None
    return found


async def put(registry: Registry, x: Exchange) -> None:
    """PUT by tag or digest. The bytes are kept as they came; what they name must be held already."""
    repository, reference = _target(x)
    media_type = x.text_header(b"content-type")
    if not media_type:
        raise ManifestInvalid("Content-Type is missing; send the manifest's media type")
    raw = await x.read_body(registry.limits.manifest_bytes, "limits.manifest_bytes")
    algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
    manifest = Manifest.parse(raw, media_type, algorithm)
    descriptor = await x.sink.put_manifest(repository, reference, manifest, x.principal.name)
    headers: Headers = [
        (b"location", f"/v2/{repository}/manifests/{descriptor.digest}".encode()),
        (b"docker-content-digest", str(descriptor.digest).encode()),
    ]
    if manifest.subject is not None:
        headers.append((b"oci-subject", str(manifest.subject).encode()))
    await x.respond(201, headers)


async def delete(_: Registry, x: Exchange) -> None:
    """DELETE a tag, or a manifest with every tag on it; readers notice at once."""
    repository, reference = _target(x)
    await x.sink.delete(repository, reference, x.principal.name)
    await x.respond(202, [])

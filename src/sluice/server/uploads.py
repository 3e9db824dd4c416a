"""Uploads: the resumable way in (spec: "Pushing blobs"): POST, PATCH, PUT, GET, DELETE and mounting."""

from __future__ import annotations

from contextlib import suppress

from sluice.errors import (
    DigestInvalid,
    NameInvalid,
    RequestInvalid,
    UploadRangeInvalid,
    UploadUnknown,
)
from sluice.oci.content import Descriptor
from sluice.oci.digest import HEX_LENGTH, Digest
from sluice.oci.reference import Repository, parse_repository
from sluice.server.access import Action
from sluice.server.exchange import Exchange, Headers
from sluice.server.registry import Registry
from sluice.wire.ranges import parse_content_range, upload_range


def _repository(x: Exchange) -> Repository:
    assert x.route.repository is not None
    return x.route.repository


def _session(x: Exchange) -> tuple[Repository, str]:
    assert x.route.session is not None
    return _repository(x), x.route.session


def _progress(repository: Repository, session: str, offset: int) -> Headers:
    return [
        (b"location", f"/v2/{repository}/blobs/uploads/{session}".encode()),
        (b"range", upload_range(offset).encode()),
        (b"docker-upload-uuid", session.encode()),
    ]


async def _created(x: Exchange, repository: Repository, descriptor: Descriptor) -> None:
    digest = str(descriptor.digest)
    location = f"/v2/{repository}/blobs/{digest}".encode()
    await x.respond(201, [(b"location", location), (b"docker-content-digest", digest.encode())])


async def start(registry: Registry, x: Exchange) -> None:
    """POST: mount from another repository, or take the whole blob at once, or open a session."""
    repository = _repository(x)
    mount, digest = x.query.get("mount"), x.query.get("digest")
    if mount is not None and await _mounted(registry, x, mount):
        return
    uploads = x.sink.uploads
    if digest is not None and mount is None:
        wanted = Digest.parse(digest)
        session = await uploads.start(repository, wanted.algorithm)
        try:
            await uploads.append(repository, session, 0, x.body())
            descriptor = await uploads.commit(repository, session, wanted)
        except BaseException:
            with suppress(UploadUnknown):
                await uploads.cancel(repository, session)
            raise
        await _created(x, repository, descriptor)
        return
    session = await uploads.start(repository, _algorithm(x))
    await x.respond(202, _progress(repository, session, 0))


def _algorithm(x: Exchange) -> str:
    algorithm = x.query.get("digest-algorithm") or "sha256"
    if algorithm not in HEX_LENGTH:
        raise DigestInvalid(f"digest-algorithm {algorithm[:80]!r} is not supported; use one of {', '.join(HEX_LENGTH)}")
    return algorithm


async def _mounted(registry: Registry, x: Exchange, mount: str) -> bool:
    """Link a blob that another repository holds, if the caller may read it there. Else the client uploads."""
    source_name = x.query.get("from")
    if source_name is None:
        return False
    digest = Digest.parse(mount)
    try:
        source = parse_repository(source_name)
    except NameInvalid:
        return False
    if not x.principal.allows(Action.PULL, source):
        return False
    descriptor = await x.sink.mount(_repository(x), source, digest)
    if descriptor is None:
        return False
    await _created(x, _repository(x), descriptor)
    return True


def _announced_offset(x: Exchange) -> int | None:
    """Where the client says that this chunk starts; its length must agree with the body's."""
    text = x.text_header(b"content-range")
    if text is None:
        return None
    first, last = parse_content_range(text)
    length = x.content_length
    if length is not None and length != last - first + 1:
        raise RequestInvalid(f"Content-Range {text!r} spans {last - first + 1} bytes, Content-Length is {length}")
    return first


async def _append(registry: Registry, x: Exchange) -> int:
    repository, session = _session(x)
    try:
        return await x.sink.uploads.append(repository, session, _announced_offset(x), x.body())
    except UploadRangeInvalid as error:
        x.error_headers = _progress(repository, session, error.offset)
        raise


async def patch(registry: Registry, x: Exchange) -> None:
    """PATCH: append a chunk. What came before a broken connection stays, and the session says how much that is."""
    repository, session = _session(x)
    offset = await _append(registry, x)
    await x.respond(202, _progress(repository, session, offset))


async def put(registry: Registry, x: Exchange) -> None:
    """PUT ?digest=…: take the last chunk if there is one, then verify, make durable and publish."""
    repository, session = _session(x)
    text = x.query.get("digest")
    if text is None:
        raise DigestInvalid("the digest parameter is missing; end an upload with PUT <location>?digest=<digest>")
    digest = Digest.parse(text)
    await _append(registry, x)
    descriptor = await x.sink.uploads.commit(repository, session, digest)
    await _created(x, repository, descriptor)


async def status(registry: Registry, x: Exchange) -> None:
    """GET: how many bytes the session holds."""
    repository, session = _session(x)
    offset = await x.sink.uploads.offset(repository, session)
    await x.respond(204, _progress(repository, session, offset))


async def cancel(registry: Registry, x: Exchange) -> None:
    """DELETE: drop the session and its bytes."""
    repository, session = _session(x)
    await x.sink.uploads.cancel(repository, session)
    await x.respond(204, [])

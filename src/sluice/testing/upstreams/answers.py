"""The correct answers of a registry: the pull half of the OCI Distribution Specification 1.1. PURE.

``server`` asks for one for every request before any fault sees it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from sluice.errors import RangeNotSatisfiable
from sluice.oci.mediatype import OCI_INDEX
from sluice.testing.upstreams.content import GivenOctets, UpstreamContent
from sluice.testing.upstreams.reply import JSON, Reply, refusal
from sluice.testing.upstreams.seen import Kind, SeenRequest
from sluice.wire.link import next_link
from sluice.wire.listing import render_referrers
from sluice.wire.ranges import content_range, parse_range, resolve

OCTETS = "application/octet-stream"
PAGE_MAX = 1000
API_VERSION = ("Docker-Distribution-Api-Version", "registry/2.0")


def answer(content: UpstreamContent, request: SeenRequest) -> Reply:
    """What a correct registry that holds ``content`` answers."""
    if request.method not in {"GET", "HEAD"}:
        return refusal(405, "UNSUPPORTED", (("Allow", "GET, HEAD"),))
    respond = _ANSWERS.get(request.kind)
    reply = respond(content, request) if respond is not None else refusal(404, "UNSUPPORTED")
    return reply.with_header(*API_VERSION)


def _ping(content: UpstreamContent, request: SeenRequest) -> Reply:
    return Reply.of(200, b"{}", JSON)


def _manifest(content: UpstreamContent, request: SeenRequest) -> Reply:
    held = content.manifest(request.repository, request.reference)
    if held is None:
        return refusal(404, "MANIFEST_UNKNOWN")
    return Reply.of(200, held.raw, held.media_type, (("Docker-Content-Digest", str(held.digest)),))


def _blob(content: UpstreamContent, request: SeenRequest) -> Reply:
    held = content.blob(request.repository, request.reference)
    if held is None:
        return refusal(404, "BLOB_UNKNOWN")
    headers = (
        ("Content-Type", OCTETS),
        ("Docker-Content-Digest", request.reference),
        ("ETag", f'"{request.reference}"'),
        ("Accept-Ranges", "bytes"),
    )
    wanted = parse_range(request.headers.get("range")) if request.method == "GET" else None
    if wanted is None:
        return Reply(200, headers, held, 0, held.size)
    try:
        start, length = resolve(wanted, held.size)
    except RangeNotSatisfiable:
        return refusal(416, "SIZE_INVALID", (("Content-Range", f"bytes */{held.size}"),))
    return Reply(206, (*headers, ("Content-Range", content_range(start, length, held.size))), held, start, length)


def _tags(content: UpstreamContent, request: SeenRequest) -> Reply:
    found = content.tags(request.repository)
    if found is None:
        return refusal(404, "NAME_UNKNOWN")
    limit, last = request.only("n"), request.only("last")
    size = min(int(limit), PAGE_MAX) if limit is not None and limit.isdecimal() else PAGE_MAX
    rest = [tag for tag in found if last is None or tag > last]
    page = rest[:size]
    reply = Reply.of(200, json.dumps({"name": request.repository, "tags": page}).encode(), JSON)
    if page and len(rest) > len(page):
        return reply.with_header("Link", next_link(request.path, {"n": str(size), "last": page[-1]}))
    return reply


def _referrers(content: UpstreamContent, request: SeenRequest) -> Reply:
    found = content.referrers(request.repository, request.reference)
    kind = request.only("artifactType")
    if kind is None:
        return Reply.of(200, render_referrers(found), OCI_INDEX)
    chosen = render_referrers([one for one in found if one.artifact_type == kind])
    return Reply.of(200, chosen, OCI_INDEX, (("OCI-Filters-Applied", "artifactType"),))


_ANSWERS: dict[Kind, Callable[[UpstreamContent, SeenRequest], Reply]] = {
    Kind.PING: _ping,
    Kind.MANIFEST: _manifest,
    Kind.BLOB: _blob,
    Kind.TAGS: _tags,
    Kind.REFERRERS: _referrers,
}

PAGE = GivenOctets(b"<!doctype html><title>Sign in</title><p>Please sign in to continue.</p>\n")
"""What a captive portal or a wrong address answers everything with."""

"""Which requests a fault is for: predicates on ``SeenRequest``, ready-made and to be combined. PURE."""

from __future__ import annotations

from collections.abc import Callable

from sluice.oci.digest import Digest
from sluice.testing.upstreams.seen import Kind, SeenRequest

When = Callable[[SeenRequest], bool]

CONTENT = frozenset({Kind.MANIFEST, Kind.BLOB, Kind.TAGS, Kind.REFERRERS})


def anything(request: SeenRequest) -> bool:
    """Every request."""
    return True


def blobs(request: SeenRequest) -> bool:
    """Requests for blobs."""
    return request.kind is Kind.BLOB


def manifests(request: SeenRequest) -> bool:
    """Requests for manifests, by tag or digest."""
    return request.kind is Kind.MANIFEST


def tokens(request: SeenRequest) -> bool:
    """Requests to the token endpoint."""
    return request.kind is Kind.TOKEN


def content_requests(request: SeenRequest) -> bool:
    """Requests for what a repository holds: manifests, blobs, tag lists, referrers."""
    return request.kind in CONTENT


def gets(request: SeenRequest) -> bool:
    """Requests by GET."""
    return request.method == "GET"


def of_kind(*kinds: Kind) -> When:
    """Requests of these kinds."""
    return lambda request: request.kind in kinds


def of_digest(digest: Digest | str) -> When:
    """Requests that name this digest, as blob, manifest or subject."""
    return lambda request: request.reference == str(digest)


def all_of(*conditions: When) -> When:
    """Requests that meet every one of ``conditions``."""
    return lambda request: all(condition(request) for condition in conditions)

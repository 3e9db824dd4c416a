"""Routes: the request's path, parsed once into one frozen value. PURE.

The first step of every request that is not answered from memory (``server.app``); behind it nobody sees a path. It
starts from the raw octets, because a server library that has decoded them already has lost the difference between a
bad escape and a good one. The shapes are those of the OCI Distribution Specification 1.1, "Endpoints", and the two
that Docker's clients add: the catalog and the token endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from sluice.errors import ManifestUnknown, MethodNotAllowed, NameInvalid, RouteUnknown, SluiceError, UploadUnknown
from sluice.oci.digest import Digest
from sluice.oci.reference import Reference, Repository, parse_reference, parse_repository

PATH_LENGTH_MAX = 1024
"""Bytes of the path as it came: a repository name, a tag or a sha512 digest and the words between fit well."""

_PREFIX = "/v2/"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f�]")
_BAD_SEGMENTS = frozenset({"", ".", ".."})
_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Kind(Enum):
    """What a path is; the value is the operation's name in metrics."""

    BASE = "base"
    CATALOG = "catalog"
    TOKEN = "token"  # noqa: S105 - an endpoint's name
    TAGS = "tags"
    MANIFEST = "manifest"
    BLOB = "blob"
    UPLOADS = "uploads"
    UPLOAD = "upload"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed path. ``reference`` is a tag or digest for MANIFEST, a digest for BLOB and REFERRERS; ``session`` is
    the upload's identifier for UPLOAD, 32 lower-case hexadecimal digits; what a kind lacks is None."""

    kind: Kind
    repository: Repository | None = None
    reference: Reference | None = None
    session: str | None = None


ALLOWED: dict[Kind, tuple[str, ...]] = {
    Kind.BASE: ("GET", "HEAD"),
    Kind.CATALOG: ("GET",),
    Kind.TOKEN: ("GET", "POST"),
    Kind.TAGS: ("GET",),
    Kind.MANIFEST: ("GET", "HEAD", "PUT", "DELETE"),
    Kind.BLOB: ("GET", "HEAD", "DELETE"),
    Kind.UPLOADS: ("POST",),
    Kind.UPLOAD: ("GET", "PATCH", "PUT", "DELETE"),
    Kind.REFERRERS: ("GET",),
}
"""The methods of each kind, in the order of the ``Allow`` header."""

_FIXED = {
    "/v2": Route(Kind.BASE),
    "/v2/": Route(Kind.BASE),
    "/v2/_catalog": Route(Kind.CATALOG),
    "/token": Route(Kind.TOKEN),
}


def check_method(route: Route, method: str) -> None:
    """Raise MethodNotAllowed, with the value for ``Allow``, where the path's kind has no such method."""
    allowed = ALLOWED[route.kind]
    if method not in allowed:
        allow = ", ".join(allowed)
        raise MethodNotAllowed(
            f"method {method[:32]!r} is not allowed on a {route.kind.value} path; use {allow}", allow=allow
        )


def parse_route(raw_path: bytes, method: str = "GET") -> Route:
    """Parse a path without its query.

    Raises NameInvalid (a path under ``/v2/`` that holds no valid name), RouteUnknown (any other that is none of
    ours), DigestInvalid or UploadUnknown. A tag that breaks the grammar names nothing that could be held, so it is
    ManifestUnknown (404), as the specification's conformance suite has it; only where ``method`` is PUT, which would
    create it, NameInvalid.
    """
    text = _decoded(raw_path)
    fixed = _FIXED.get(text)
    if fixed is not None:
        return fixed
    if not text.startswith(_PREFIX):
        raise RouteUnknown(f"path {text[:160]!r} is none of this registry's; its API is under {_PREFIX}")
    segments = text.removeprefix(_PREFIX).split("/")
    if segments[-3:] == ["blobs", "uploads", ""]:
        del segments[-1]
    if not _BAD_SEGMENTS.isdisjoint(segments):
        raise NameInvalid(f"path {text[:160]!r} has an empty, '.' or '..' segment; send the plain name")
    return _parse_from_end(segments, text, method)


def _decoded(raw_path: bytes) -> str:
    if len(raw_path) > PATH_LENGTH_MAX:
        raise NameInvalid(f"the path has {len(raw_path)} bytes; at most {PATH_LENGTH_MAX} are allowed")
    octets = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    if octets is not raw_path and _BAD_ESCAPE.search(raw_path) is not None:
        _refuse(octets, "has a '%' without two hexadecimal digits; escape it as %25")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(octets, "is not UTF-8")
    if _FORBIDDEN.search(text) is not None:
        _refuse(octets, "has a control or replacement character")
    return text


def _refuse(octets: bytes, why: str) -> NoReturn:
    """A path that cannot be read: a bad name where names are expected, else an unknown route."""
    error: Callable[[str], SluiceError] = NameInvalid if octets.startswith(_PREFIX.encode()) else RouteUnknown
    raise error(f"path {ascii(octets[:160])[1:]} {why}")


def _parse_from_end(segments: list[str], text: str, method: str) -> Route:
    """A name may hold the words that end it (``team/blobs/manifests``), so only the last ones count."""
    match segments:
        case [*name, "tags", "list"]:
            return Route(Kind.TAGS, _repository(name))
        case [*name, "blobs", "uploads"]:
            return Route(Kind.UPLOADS, _repository(name))
        case [*name, "blobs", "uploads", session]:
            return Route(Kind.UPLOAD, _repository(name), session=_session(session))
        case [*name, "manifests", reference]:
            return Route(Kind.MANIFEST, _repository(name), _reference(reference, method))
        case [*name, "blobs", digest]:
            return Route(Kind.BLOB, _repository(name), Digest.parse(digest))
        case [*name, "referrers", digest]:
            return Route(Kind.REFERRERS, _repository(name), Digest.parse(digest))
    raise RouteUnknown(f"path {text[:160]!r} is no endpoint; paths end as in <name>/manifests/<reference>")


def _repository(segments: list[str]) -> Repository:
    return parse_repository("/".join(segments))


def _session(text: str) -> str:
    if _SESSION.fullmatch(text) is None:
        raise UploadUnknown(f"upload {text[:160]!r} is unknown; start one with POST <name>/blobs/uploads/")
    return text


def _reference(text: str, method: str) -> Reference:
    try:
        return parse_reference(text)
    except NameInvalid as error:
        if method == "PUT":
            raise
        raise ManifestUnknown(f"no manifest can be there: {error.message}") from None

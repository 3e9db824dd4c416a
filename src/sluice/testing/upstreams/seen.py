"""A request as an upstream saw it, and what became of it: what faults choose by, and what tests count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qsl, unquote

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)")


class Kind(Enum):
    """What a request asks for."""

    PING = "ping"
    TOKEN = "token"  # noqa: S105 - an endpoint's name
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    OTHER = "other"


_KINDS = {"manifests": Kind.MANIFEST, "blobs": Kind.BLOB, "referrers": Kind.REFERRERS, "tags": Kind.TAGS}
_FIXED = {"/v2": Kind.PING, "/v2/": Kind.PING, "/token": Kind.TOKEN}


@dataclass(slots=True)
class SeenRequest:
    """One request. The first group of fields is what came, the second what became of it, which grows meanwhile.

    ``headers`` have lower-case names; several of one name are joined by a comma. ``server`` is the URL of the server
    that saw it, ``connection`` the number of its connection there, from 1. ``came`` and ``ended`` are seconds of
    ``time.monotonic``. ``bytes_sent`` counts octets of the answer's body that the kernel has taken, without chunk
    framing. ``left_early`` says that the client was gone, or half closed, before they all were.
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]]
    headers: Mapping[str, str]
    body: bytes
    came: float
    server: str
    connection: int
    kind: Kind
    repository: str
    reference: str

    status: int | None = None
    bytes_sent: int = 0
    left_early: bool = False
    ended: float | None = None

    def only(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return next(iter(self.query.get(name, ())), None)


class HeadInvalid(Exception):
    """What came is no HTTP/1 request."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request line and its headers."""

    method: str
    target: str
    version: str
    headers: Mapping[str, str]

    @property
    def keeps_alive(self) -> bool:
        """Whether the client lets the connection stay (RFC 9112 section 9.3)."""
        options = self.headers.get("connection", "").lower()
        return "close" not in options if self.version == "HTTP/1.1" else "keep-alive" in options

    @property
    def body_bytes(self) -> int:
        """``Content-Length``; bodies of another framing are not understood."""
        text = self.headers.get("content-length", "0")
        if not text.isdecimal() or int(text) > BODY_BYTES_MAX or "transfer-encoding" in self.headers:
            raise HeadInvalid(f"a body of {BODY_BYTES_MAX} bytes at most, with its length, is understood")
        return int(text)


def parse_head(raw: bytes) -> RequestHead:
    """Parse everything before the empty line; raises HeadInvalid."""
    line, *fields = raw.decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or parts[2] not in {"HTTP/1.1", "HTTP/1.0"} or not parts[1].startswith("/"):
        raise HeadInvalid(f"request line {line[:80]!r}")
    headers: dict[str, str] = {}
    for text in fields:
        name, colon, value = text.partition(":")
        if not colon or not name or name != name.strip():
            raise HeadInvalid(f"header {text[:80]!r}")
        key, value = name.lower(), value.strip()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return RequestHead(parts[0], parts[1], parts[2], headers)


def seen_request(head: RequestHead, body: bytes, came: float, server: str, connection: int) -> SeenRequest:
    """What ``head`` and ``body`` ask for."""
    raw_path, _, raw_query = head.target.partition("?")
    path = unquote(raw_path)
    query: dict[str, tuple[str, ...]] = {}
    for name, value in parse_qsl(raw_query, keep_blank_values=True):
        query[name] = (*query.get(name, ()), value)
    kind, repository, reference = _parsed(path)
    return SeenRequest(
        method=head.method,
        path=path,
        query=query,
        headers=head.headers,
        body=body,
        came=came,
        server=server,
        connection=connection,
        kind=kind,
        repository=repository,
        reference=reference,
    )


def _parsed(path: str) -> tuple[Kind, str, str]:
    match = _PATH.fullmatch(path)
    if match is None:
        return _FIXED.get(path, Kind.OTHER), "", ""
    kind = _KINDS[match["kind"]]
    if kind is Kind.TAGS and match["reference"] != "list":
        return Kind.OTHER, "", ""
    return kind, match["repository"], match["reference"]

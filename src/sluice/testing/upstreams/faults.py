"""Faults: frozen values, each of which spoils the replies to the requests that it is for. PURE.

``server`` lets every fault that matches change the reply in turn, so several combine: ``Slow`` and then ``Cut`` is a
slow answer that breaks off. ``times`` is how many requests it spoils; None: all. The token flow is ``unauthorized``,
which goes first: what needs a success then leaves its 401 alone. An upstream from which something vanishes is
``UpstreamContent.delete_tag``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from sluice.oci.digest import Digest
from sluice.testing.upstreams.answers import PAGE
from sluice.testing.upstreams.content import GivenOctets, Octets
from sluice.testing.upstreams.matching import When, anything, blobs, content_requests
from sluice.testing.upstreams.reply import Framing, Reply, refusal
from sluice.testing.upstreams.seen import SeenRequest
from sluice.wire.ranges import content_range

RATE_LIMIT = (("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", "0;w=21600"))
SUCCESSES = frozenset({200, 206})


class Fault(Protocol):
    """What a server applies."""

    @property
    def when(self) -> When:
        """Which requests it is for."""
        ...

    @property
    def times(self) -> int | None:
        """How many requests it spoils; None: all."""
        ...

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """The spoilt reply; None where there is nothing to spoil, which does not count as a time."""
        ...


def _has_more(request: SeenRequest, reply: Reply, octets: int) -> bool:
    """Whether a success has a body of more than so many octets."""
    return request.method != "HEAD" and reply.status in SUCCESSES and reply.length > octets


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends after ``after_bytes`` octets of a body that has more of them.

    It ends with a FIN, or with ``rst`` by a RST once the client's kernel has all octets before it. ``before_head``:
    before anything of the reply.
    """

    after_bytes: int = 0
    times: int | None = None
    rst: bool = False
    before_head: bool = False
    when: When = content_requests

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Set the mark; nothing where the body ends before it."""
        if self.before_head:
            delivery = replace(reply.delivery, cut_before_head=True, rst=self.rst)
        elif not _has_more(request, reply, self.after_bytes):
            return None
        else:
            delivery = replace(reply.delivery, cut_after=self.after_bytes, rst=self.rst)
        return replace(reply, delivery=delivery)


@dataclass(frozen=True, slots=True)
class Stall:
    """The reply stops, the connection stays: before its head, or after ``after_bytes`` octets of its body.

    It goes on when the server's faults are changed, and ends when the client leaves or the server stops.
    """

    after_bytes: int | None = None
    times: int | None = None
    when: When = anything

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Set the mark; nothing where the body ends before it."""
        if self.after_bytes is None:
            return replace(reply, delivery=replace(reply.delivery, stall_before_head=True))
        if not _has_more(request, reply, self.after_bytes):
            return None
        return replace(reply, delivery=replace(reply.delivery, stall_after=self.after_bytes))


@dataclass(frozen=True, slots=True)
class Slow:
    """The body comes in small pieces at ``bytes_per_s``; the head comes at once."""

    bytes_per_s: float
    times: int | None = None
    when: When = content_requests

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Set the speed."""
        if not _has_more(request, reply, 0):
            return None
        return replace(reply, delivery=replace(reply.delivery, bytes_per_s=self.bytes_per_s))


class Lie(Enum):
    """What is wrong with an answer that says 200 or 206; everything else about it is right.

    BYTES: the octet at ``Liar.at`` has another value. SHORT: the last octet is missing, and the length agrees. LONG:
    one too many, and the length agrees. DIGEST_HEADER: ``Docker-Content-Digest`` names other content. HTML: a page with
    200. CONTENT_TYPE: ``text/plain``. CHUNKED: right, but of no known length. UNTIL_CLOSE: the same, ended by the end
    of the connection. NO_RANGE: a range is ignored, the whole comes with 200. WRONG_RANGE: a 206 that starts one octet
    later than asked, and says so.
    """

    BYTES = "bytes"
    SHORT = "short"
    LONG = "long"
    DIGEST_HEADER = "digest-header"
    HTML = "html"
    CONTENT_TYPE = "wrong-content-type"
    CHUNKED = "chunked-no-length"
    UNTIL_CLOSE = "until-close"
    NO_RANGE = "no-range"
    WRONG_RANGE = "wrong-range"


@dataclass(frozen=True, slots=True)
class Liar:
    """A reply that succeeds and is not true. ``at`` is where BYTES lies, from the content's begin (or end, if < 0)."""

    kind: Lie | str
    times: int | None = None
    at: int = 0
    when: When = content_requests

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Tell the lie; nothing where the reply is no success, or not one that can be lied about."""
        lie = Lie(self.kind)
        if lie is Lie.HTML:
            return Reply(200, (("Content-Type", "text/html"),), PAGE, 0, PAGE.size)
        if reply.status not in SUCCESSES:
            return None
        if lie is Lie.DIGEST_HEADER:
            return reply.with_header("Docker-Content-Digest", str(Digest.of(b"something else")))
        if lie is Lie.CONTENT_TYPE:
            return reply.with_header("Content-Type", "text/plain")
        if lie is Lie.CHUNKED:
            return replace(reply, framing=Framing.CHUNKED)
        if lie is Lie.UNTIL_CLOSE:
            return replace(reply, framing=Framing.CLOSE)
        if lie in {Lie.NO_RANGE, Lie.WRONG_RANGE}:
            return _wrong_part(lie, reply)
        return _wrong_octets(lie, reply, self.at)


def _wrong_part(lie: Lie, reply: Reply) -> Reply | None:
    if reply.status != 206:
        return None
    size = reply.octets.size
    if lie is Lie.NO_RANGE:
        headers = tuple(pair for pair in reply.headers if pair[0] != "Content-Range")
        return replace(reply, status=200, headers=headers, start=0, length=size)
    if reply.length < 2:
        return None
    start, length = reply.start + 1, reply.length - 1
    moved = replace(reply, start=start, length=length)
    return moved.with_header("Content-Range", content_range(start, length, size))


def _wrong_octets(lie: Lie, reply: Reply, at: int) -> Reply | None:
    ends = reply.start + reply.length == reply.octets.size
    if lie is Lie.BYTES:
        position = at if at >= 0 else reply.octets.size + at
        if not reply.start <= position < reply.start + reply.length:
            return None
        return replace(reply, octets=_Altered(reply.octets, position))
    if not ends or not reply.length:
        return None
    if lie is Lie.SHORT:
        return replace(reply, length=reply.length - 1)
    return replace(reply, octets=_Longer(reply.octets), length=reply.length + 1)


@dataclass(frozen=True, slots=True)
class _Altered:
    """Octets of which the one at ``at`` has all its bits turned."""

    octets: Octets
    at: int

    @property
    def size(self) -> int:
        return self.octets.size

    def read(self, offset: int, length: int) -> memoryview:
        piece = self.octets.read(offset, length)
        index = self.at - offset
        if not 0 <= index < len(piece):
            return piece
        altered = bytearray(piece)
        altered[index] ^= 0xFF
        return memoryview(altered)


@dataclass(frozen=True, slots=True)
class _Longer:
    """Octets with one more at the end."""

    octets: Octets

    @property
    def size(self) -> int:
        return self.octets.size + 1

    def read(self, offset: int, length: int) -> memoryview:
        return GivenOctets(b"+").read(0, 1) if offset == self.octets.size else self.octets.read(offset, length)


@dataclass(frozen=True, slots=True)
class Redirect:
    """``Location`` is ``to`` (scheme, host, port) with the request's path; without ``to`` the request's own: a loop.

    With ``exact``, ``to`` is the whole location. ``query`` goes behind it, as a blob storage's signature does.
    """

    to: str | None = None
    times: int | None = None
    status: int = 307
    query: str = ""
    exact: bool = False
    when: When = blobs

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Send the client there; nothing where there is no success to send it to."""
        if reply.status not in SUCCESSES:
            return None
        place = self.to if self.to is not None and self.exact else (self.to or request.server) + request.path
        location = f"{place}?{self.query}" if self.query else place
        return Reply(self.status, (("Location", location),))


@dataclass(frozen=True, slots=True)
class RateLimited:
    """429, with ``Retry-After`` where ``retry_after`` is given (seconds or a date) and with the rate-limit headers."""

    retry_after: int | str | None = None
    times: int | None = None
    when: When = anything

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Refuse."""
        refused = refusal(429, "TOOMANYREQUESTS", RATE_LIMIT)
        return refused if self.retry_after is None else refused.with_header("Retry-After", str(self.retry_after))


@dataclass(frozen=True, slots=True)
class Failing:
    """``status`` instead of an answer, with the specification's body for errors."""

    status: int = 503
    times: int | None = None
    code: str = "UNKNOWN"
    when: When = anything

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Fail."""
        return refusal(self.status, self.code)


@dataclass(frozen=True, slots=True)
class NoHead:
    """405 for HEAD, as some registries have it."""

    times: int | None = None
    when: When = content_requests

    def apply(self, request: SeenRequest, reply: Reply) -> Reply | None:
        """Refuse HEAD."""
        return refusal(405, "UNSUPPORTED", (("Allow", "GET"),)) if request.method == "HEAD" else None

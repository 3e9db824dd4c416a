"""A reply as a value: head, octets, and how they are to be delivered. PURE.

``answers`` makes the correct one, ``faults`` change it, ``delivery`` sends it. Thus a fault decides and sends nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus

from sluice.testing.upstreams.content import GivenOctets, Octets

EMPTY = GivenOctets(b"")
JSON = "application/json"


class Framing(Enum):
    """How the body's end is told: by its length, by a last chunk, or by the end of the connection."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a reply goes out. The marks ``cut_after`` and ``stall_after`` count octets of the body; None: never."""

    cut_before_head: bool = False
    cut_after: int | None = None
    rst: bool = False
    stall_before_head: bool = False
    stall_after: int | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """``length`` octets of ``octets`` from ``start`` are the body; a HEAD gets the same head and no body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    octets: Octets = EMPTY
    start: int = 0
    length: int = 0
    framing: Framing = Framing.LENGTH
    delivery: Delivery = Delivery()

    @classmethod
    def of(cls, status: int, body: bytes, media_type: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
        """A reply with a body in memory."""
        return cls(status, (("Content-Type", media_type), *headers), GivenOctets(body), 0, len(body))

    def with_header(self, name: str, value: str) -> Reply:
        """The same with this header, in the place of any of the same name."""
        others = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return replace(self, headers=(*others, (name, value)))

    def header(self, name: str) -> str | None:
        """The value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def head(self, *, close: bool) -> bytes:
        """Status line, headers, empty line. ``close`` says that the connection ends behind the body."""
        headers = [*self.headers]
        if self.framing is Framing.LENGTH:
            headers.append(("Content-Length", str(self.length)))
        elif self.framing is Framing.CHUNKED:
            headers.append(("Transfer-Encoding", "chunked"))
        if close:
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def refusal(status: int, code: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An error with the specification's body."""
    body = json.dumps({"errors": [{"code": code, "message": "as the test wants it"}]}).encode()
    return Reply.of(status, body, JSON, headers)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"

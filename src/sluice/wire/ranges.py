"""Ranges: which bytes of a blob are wanted, and which an upload's chunk brings. PURE.

Downloads follow RFC 9110 section 14. A range that a server need not understand is ignored and the whole is sent, which
every client accepts; only a range that lies outside is refused. Uploads use the specification's own form of
``Content-Range``, without unit and length (OCI Distribution Specification 1.1, "Pushing a blob in chunks").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sluice.errors import RangeNotSatisfiable, RequestInvalid

POSITION_MAX = 2**63 - 1
"""Bytes; a larger number counts as this one, which lies beyond every content."""

_POSITION_DIGITS = 19
_RANGE = re.compile(r"[ \t]*bytes[ \t]*=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(
    r"(?:bytes +)?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|([0-9]{1,18})))?", re.ASCII | re.IGNORECASE
)
_SERVED = re.compile(r"bytes +(?:([0-9]{1,18})-([0-9]{1,18})|\*)/(?:([0-9]{1,18})|\*)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServedRange:
    """What a 206 brings, ``first`` to ``last`` inclusive, of ``size`` bytes; None is unknown. In a 416, only ``size``
    is there."""

    first: int | None
    last: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``first`` to ``last`` inclusive; without ``last`` to the end; without ``first`` the final ``last`` bytes."""

    first: int | None
    last: int | None


def parse_range(header: str | None) -> ByteRange | None:
    """The range that ``Range`` asks for; None where everything is to be sent.

    That is: no header, another unit, several ranges, or a syntax error (RFC 9110 section 14.2: a server may ignore any
    range, and must ignore an invalid one).
    """
    match = _RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last = _position(match[1]), _position(match[2])
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


def _position(digits: str) -> int | None:
    significant = digits.lstrip("0")
    if len(significant) > _POSITION_DIGITS:
        return POSITION_MAX
    return min(int(digits), POSITION_MAX) if digits else None


def resolve(wanted: ByteRange, size: int) -> tuple[int, int]:
    """``(start, length)`` in a content of ``size`` bytes; raises RangeNotSatisfiable.

    RFC 9110 section 14.1.2. Empty content has no bytes that ``Content-Range`` could name, so nothing of it satisfies.
    """
    if wanted.first is None:
        assert wanted.last is not None
        start, end = max(size - wanted.last, 0), size
    else:
        start, end = wanted.first, size if wanted.last is None else min(wanted.last + 1, size)
    if start >= end:
        raise RangeNotSatisfiable(f"the range asks for bytes beyond the content's {size}; ask for less", size=size)
    return start, end - start


def content_range(start: int, length: int, size: int) -> str:
    """The value of ``Content-Range`` in a 206 (RFC 9110 section 14.4); ``length`` is at least 1."""
    return f"bytes {start}-{start + length - 1}/{size}"


def parse_content_range(text: str) -> tuple[int, int]:
    """``(first, last)``, inclusive, of a chunk: ``0-1023``, or ``bytes 0-1023/*``; raises RequestInvalid."""
    match = _CONTENT_RANGE.fullmatch(text.strip(" \t"))
    if match is None:
        raise RequestInvalid(f"Content-Range {text[:80]!r} is invalid: expected <first>-<last>, as in 0-1023")
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise RequestInvalid(f"Content-Range {text[:80]!r} ends before it starts")
    if match[3] is not None and last >= int(match[3]):
        raise RequestInvalid(f"Content-Range {text[:80]!r} ends beyond the length that it names itself")
    return first, last


def parse_served_range(header: str | None) -> ServedRange | None:
    """``Content-Range`` of a 206 or 416 (RFC 9110 section 14.4); None where it is missing or contradicts itself."""
    match = _SERVED.fullmatch((header or "").strip(" \t"))
    if match is None:
        return None
    first, last, size = (None if text is None else int(text) for text in match.groups())
    if first is not None and last is not None and (last < first or (size is not None and last >= size)):
        return None
    return ServedRange(first, last, size)


def upload_range(offset: int) -> str:
    """The value of ``Range`` that tells how far an upload has come; ``offset`` in bytes.

    The form cannot say "nothing yet": ``0-0`` stands for that, as for one byte, in every registry.
    """
    return f"0-{max(offset - 1, 0)}"

"""Query strings, parsed once and bounded. PURE.

``server.exchange`` parses a request's query at most once; the token endpoint's form has the same syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from sluice.errors import RequestInvalid

QUERY_LENGTH_MAX = 16 * 1024
"""Bytes of the query string as it came."""
PARAMETERS_MAX = 100
"""Parameters in one query string."""
PAGE_SIZE_MAX = 1000
"""Entries in one page of a listing; also what a client gets that does not ask."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_COUNT = re.compile(r"[0-9]+", re.ASCII)
_COUNT_DIGITS = len(str(PAGE_SIZE_MAX))


class Query(dict[str, str]):
    """Parameters by name, the last value of each; ``all`` has every value."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs = tuple(pairs)
        super().__init__(self.pairs)

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a parameter in the order of the query."""
        return tuple(value for key, value in self.pairs if key == name)

    def page_size(self) -> int:
        """The parameter ``n``: at most so many entries, PAGE_SIZE_MAX where it is absent or larger; 0 asks for none.

        Raises RequestInvalid (OCI Distribution Specification 1.1, "Listing Tags").
        """
        text = self.get("n")
        if text is None:
            return PAGE_SIZE_MAX
        if _COUNT.fullmatch(text) is None:
            raise RequestInvalid(f"parameter n is {text[:80]!r}; it must be a whole number of entries, 0 or more")
        significant = text.lstrip("0")
        return PAGE_SIZE_MAX if len(significant) > _COUNT_DIGITS else min(int(significant or "0"), PAGE_SIZE_MAX)

    def artifact_type(self) -> str | None:
        """The parameter ``artifactType`` (spec: "Listing Referrers").

        No media type has a space in it: one that arrives is the ``+`` of ``…+json`` that the client did not escape.
        """
        text = self.get("artifactType")
        return None if text is None else text.replace(" ", "+")


def parse_query(raw: bytes) -> Query:
    """Parse ``name=value&…``; raises RequestInvalid. ``+`` stands for a space, as clients' form encoders write it."""
    if len(raw) > QUERY_LENGTH_MAX:
        raise RequestInvalid(f"the query has {len(raw)} bytes; at most {QUERY_LENGTH_MAX} are allowed")
    if _BAD_ESCAPE.search(raw) is not None:
        raise RequestInvalid("the query has a '%' without two hexadecimal digits; escape it as %25")
    parts = [part for part in raw.split(b"&") if part]
    if len(parts) > PARAMETERS_MAX:
        raise RequestInvalid(f"the query has {len(parts)} parameters; at most {PARAMETERS_MAX} are allowed")
    return Query(_pair(part) for part in parts)


def _pair(part: bytes) -> tuple[str, str]:
    name, _, value = part.partition(b"=")
    return _text(name), _text(value)


def _text(octets: bytes) -> str:
    try:
        text = unquote_to_bytes(octets.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise RequestInvalid(f"the query's {ascii(octets[:80])[1:]} is not UTF-8") from None
    if _CONTROL.search(text) is not None:
        raise RequestInvalid(f"the query's {ascii(octets[:80])[1:]} has a control character")
    return text

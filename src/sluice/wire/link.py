"""The ``Link`` header: where a listing goes on (RFC 8288, OCI Distribution Specification 1.1, "Listing Tags"). PURE.

``next_link`` writes ours, ``parse_next_link`` reads an upstream's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

LINK_LENGTH_MAX = 8 * 1024
"""Characters of one header that are read."""

_LINK = re.compile(r'<([^<>]*)>((?:[^<>,"]|"[^"]*")*)')
_NEXT = re.compile(r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next)\s*(?:;|$)', re.IGNORECASE)


def next_link(path: str, parameters: Mapping[str, str]) -> str:
    """``</v2/…?n=…&last=…>; rel="next"``. ``path`` and ``parameters`` are plain text; both are escaped here.

    The target is relative, so that it holds behind any proxy.
    """
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters.items())
    return f'<{quote(path, safe="/:")}?{query}>; rel="next"'


def parse_next_link(values: Iterable[str]) -> str | None:
    """The target of the link to the next page as it is written, mostly relative; None where there is none.

    Never raises: what cannot be read is no link.
    """
    for value in values:
        for found in _LINK.finditer(value[:LINK_LENGTH_MAX]):
            if _NEXT.search(found[2].strip().rstrip(",")):
                return found[1].strip()
    return None

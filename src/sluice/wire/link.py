"""The ``Link`` header: where a listing goes on (RFC 8288, OCI Distribution Specification 1.1, "Listing Tags"). PURE."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote


def next_link(path: str, parameters: Mapping[str, str]) -> str:
    """``</v2/…?n=…&last=…>; rel="next"``. ``path`` and ``parameters`` are plain text; both are escaped here.

    The target is relative, so that it holds behind any proxy.
    """
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters.items())
    return f'<{quote(path, safe="/:")}?{query}>; rel="next"'

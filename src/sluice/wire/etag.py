"""Entity tags: a digest names its bytes for ever, so it is their tag (RFC 9110 sections 8.8.3 and 13.1.2). PURE."""

from __future__ import annotations

import re

from sluice.oci.digest import Digest

# etagc has no quote, but it has the comma: a list cannot be split at commas. The bare form is for Docker's clients,
# some of which send the digest without quotes.
_ENTITY_TAG = re.compile(r'(?:W/)?"([!#-~\x80-\xff]*)"|([^\s",]+)')


def digest_etag(digest: Digest) -> str:
    """The strong tag ``"sha256:…"``, quotes included."""
    return f'"{digest}"'


def none_match(header: str | None, digest: Digest) -> bool:
    """Whether ``If-None-Match`` says that the client has this content already: 304 for GET and HEAD.

    Weak comparison, lists and ``*``. A header that is not well-formed matches by what can be read of it.
    """
    if header is None:
        return False
    if header.strip() == "*":
        return True
    wanted = str(digest)
    return any(wanted in (match[1], match[2]) for match in _ENTITY_TAG.finditer(header))

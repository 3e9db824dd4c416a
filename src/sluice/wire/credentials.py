"""Credentials: the ``Authorization`` header, parsed once into one frozen value. PURE.

``server.access`` decides what they are worth. A malformed header is a value too, not an error of the request: it
proves nothing, and the answer to nothing proven is 401 with a challenge.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

AUTHORIZATION_LENGTH_MAX = 8 * 1024
"""Bytes of the header's value."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN68 = re.compile(rb"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """A name and a password (RFC 7617). Either may be empty."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BearerCredentials:
    """A token (RFC 6750 section 2.1), in the alphabet ``token68``."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A header that proves nothing. ``reason`` says why, without repeating any of it: it may hold a password."""

    reason: str


Credentials = BasicCredentials | BearerCredentials | Malformed


def parse_authorization(header: bytes | None) -> Credentials | None:
    """Parse the value of ``Authorization`` (RFC 9110 section 11.6.2); None where the header is absent."""
    if header is None:
        return None
    if len(header) > AUTHORIZATION_LENGTH_MAX:
        return Malformed(f"the Authorization header is longer than {AUTHORIZATION_LENGTH_MAX} bytes")
    scheme, _, rest = header.strip(b" \t").partition(b" ")
    match scheme.lower():
        case b"basic":
            return _basic(rest.strip(b" "))
        case b"bearer":
            return _bearer(rest.strip(b" "))
    return Malformed("the Authorization scheme is neither Basic nor Bearer")


def _basic(encoded: bytes) -> BasicCredentials | Malformed:
    """RFC 7617 section 2: Base64 of UTF-8; the first colon ends the name; no control characters."""
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8")
    except binascii.Error:
        return Malformed("the Basic credentials are not Base64")
    except UnicodeDecodeError:
        return Malformed("the Basic credentials are not UTF-8")
    if _CONTROL.search(text) is not None:
        return Malformed("the Basic credentials hold a control character")
    name, colon, password = text.partition(":")
    if not colon:
        return Malformed("the Basic credentials have no colon between name and password")
    return BasicCredentials(name, password)


def _bearer(token: bytes) -> BearerCredentials | Malformed:
    if _TOKEN68.fullmatch(token) is None:
        return Malformed("the Bearer token is empty or has characters that no token has")
    return BearerCredentials(token.decode("ascii"))

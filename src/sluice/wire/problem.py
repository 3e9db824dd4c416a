"""Problems: an error as a response's body and headers. PURE.

Used by the one error boundary, ``server.app``. The body is that of the OCI Distribution Specification 1.1, "Error
Codes"; the headers come from what the error's class carries, so that a new class needs no change there.
``parse_errors`` reads an upstream's body.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sluice.errors import MethodNotAllowed, RangeNotSatisfiable, SluiceError, Unauthorized

Headers = list[tuple[bytes, bytes]]

MESSAGE_LENGTH_MAX = 200
"""Characters of a foreign message that are repeated."""
ERRORS_MAX = 16


@dataclass(frozen=True, slots=True)
class ForeignError:
    """One error of an upstream's answer. ``message`` is cut and printable, and may be empty."""

    code: str
    message: str


def render_errors(error: SluiceError) -> bytes:
    """``{"errors":[{"code","message","detail"}]}`` in ASCII; ``detail`` only where there is one.

    Never fails on a text, not even one with half a surrogate pair; what JSON has no form for becomes its text.
    """
    entry: dict[str, object] = {"code": error.code, "message": error.message}
    if error.detail is not None:
        entry["detail"] = error.detail
    return json.dumps({"errors": [entry]}, separators=(",", ":"), default=str).encode("ascii")


def problem_headers(error: SluiceError) -> Headers:
    """The response's headers but for the length: ``Content-Type``, and what the status demands beside it.

    401: ``WWW-Authenticate``; 405: ``Allow``; 416: ``Content-Range`` with the whole size (RFC 9110 sections 15.5.2,
    15.5.6 and 15.5.17); an error that passes: ``Retry-After`` in seconds. Where an upload stands, ``Range`` and
    ``Location``, is the upload handler's to say.
    """
    headers: Headers = [(b"content-type", b"application/json")]
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", error.challenge.encode("latin-1", "replace")))
    elif isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode("latin-1", "replace")))
    elif isinstance(error, RangeNotSatisfiable):
        headers.append((b"content-range", b"bytes */%d" % error.size))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return headers


def parse_errors(body: bytes) -> tuple[ForeignError, ...]:
    """The errors in an upstream's body; empty where it is not the specification's JSON. Never raises.

    The body's length is the caller's to limit.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    entries = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return ()
    return tuple(
        ForeignError(_printable(entry["code"]), _printable(entry.get("message")))
        for entry in entries[:ERRORS_MAX]
        if isinstance(entry, dict) and isinstance(entry.get("code"), str)
    )


def _printable(text: object) -> str:
    shown = text[:MESSAGE_LENGTH_MAX] if isinstance(text, str) else ""
    return "".join(character if character.isprintable() else "?" for character in shown)

"""How refused values and unknown keys are quoted in messages: short, on one line, without secrets. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from sluice.wire.address import without_user

SHOWN_LENGTH_MAX = 160
_PEM = "-----BEGIN"


def shown(value: object) -> str:
    """For people. Left out are the user and password of a URL, PEM, which may be a key, and what mappings hold."""
    if isinstance(value, str):
        text = f"{_PEM} …" if _PEM in value else without_user(value)
        quoted = ascii(text[:SHOWN_LENGTH_MAX]).replace("\\u2026", "…")
    elif isinstance(value, Mapping):
        quoted = "{" + ", ".join(f"{shown(key)}: …" for key in value) + "}"
    elif isinstance(value, list | tuple):
        quoted = "[" + ", ".join(shown(item) for item in value) + "]"
    else:
        quoted = ascii(value)
    return quoted if len(quoted) <= SHOWN_LENGTH_MAX else quoted[:SHOWN_LENGTH_MAX] + "…"


def shown_key(key: object) -> str:
    """``shown`` without the quotes, as keys stand in messages."""
    return shown(str(key))[1:].rstrip("'\"")

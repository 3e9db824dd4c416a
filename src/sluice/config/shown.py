"""How refused values and unknown keys are quoted in messages: short, on one line, without secrets. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sluice.wire.address import without_user

SHOWN_LENGTH_MAX = 160
SHOWN_DEPTH_MAX = 4  # lists in lists; what is deeper is left out
_PEM = "-----BEGIN"


def shown(value: object) -> str:
    """For people. Left out are the user and password of a URL, PEM, which may be a key, and what mappings hold."""
    quoted = _quoted(value, SHOWN_DEPTH_MAX)
    return quoted if len(quoted) <= SHOWN_LENGTH_MAX else quoted[:SHOWN_LENGTH_MAX] + "…"


def _quoted(value: object, depth: int) -> str:
    if isinstance(value, str):
        text = f"{_PEM} …" if _PEM in value else without_user(value)
        return ascii(text[: SHOWN_LENGTH_MAX + 1]).replace("\\u2026", "…")
    if isinstance(value, Mapping):
        return "{" + _joined((f"{_quoted(key, depth - 1)}: …" for key in value), depth) + "}"
    if isinstance(value, list | tuple):
        return "[" + _joined((_quoted(item, depth - 1) for item in value), depth) + "]"
    return ascii(value)


def _joined(parts: Iterable[str], depth: int) -> str:
    """As many as are shown, however many there are."""
    if depth <= 0:
        return "…"
    text = ""
    for part in parts:
        if len(text) > SHOWN_LENGTH_MAX:
            break
        text = f"{text}, {part}" if text else part
    return text


def shown_key(key: object) -> str:
    """``shown`` without the quotes, as keys stand in messages."""
    return shown(str(key))[1:].rstrip("'\"")

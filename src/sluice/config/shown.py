"""How a refused value, or the name of an unknown key, is quoted in a message: short, on one line, without secrets. PURE."""

from __future__ import annotations

from collections.abc import Mapping

from sluice.wire.address import without_user

SHOWN_LENGTH_MAX = 160
_PEM = "-----BEGIN"


def shown(value: object) -> str:
    """For people. User and password of a URL are left out, and so is PEM, which may be a key; mappings show keys."""
    if isinstance(value, str):
        return f"'{_inner(value)}'" if '"' in value or "'" not in value else f'"{_inner(value)}"'
    if isinstance(value, Mapping):
        return _short("{" + ", ".join(f"{shown(key)}: …" for key in value) + "}")
    if isinstance(value, list | tuple):
        return _short("[" + ", ".join(shown(item) for item in value) + "]")
    return _short(without_user(ascii(value)))


def shown_key(key: object) -> str:
    """``shown`` without quotes, as keys stand in messages."""
    return _inner(str(key))


def _inner(text: str) -> str:
    if _PEM in text:
        return f"{_PEM} …"
    return _short(without_user(text)).translate(_Escapes())


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LENGTH_MAX else text[: SHOWN_LENGTH_MAX - 1] + "…"


class _Escapes(dict[int, str]):
    """Every character but ``…`` as it stands in an ASCII literal."""

    def __missing__(self, code: int) -> str:
        mark = chr(code)
        return mark if mark in "…'\"" else ascii(mark)[1:-1]

"""One entry in the ``imports`` of somebody else's TOML file: put in, and taken out of what became of the file. PURE.

``prepare`` puts it in, ``undo`` takes it out. The text around it is its owner's: whatever is done here is read back,
and nothing but that entry may differ.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import tomli_w

_IMPORTS = re.compile(r"^imports[ \t]*=[ \t]*\[[^\]\n]*\]", re.MULTILINE)
_VERSION = re.compile(r"^version[ \t]*=[^\r\n]*", re.MULTILINE)
_FIRST_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


class CannotChange(Exception):
    """An edit that cannot be made, or taken back, without changing more. In words: what the user can do."""


@dataclass(frozen=True, slots=True)
class ImportEdit:
    """What was put in: ``entry``, so that ``target`` is read. ``after`` stands where ``before`` stood; None: a line of
    its own."""

    entry: str
    target: str
    before: str | None
    after: str


def put_in(text: str, entry: str, target: str) -> tuple[str, ImportEdit]:
    """The text with another import at the end of the list. Raises CannotChange."""
    table = tomllib.loads(text)
    meant = {**table, "imports": [*table.get("imports", []), entry]}
    quoted = _quoted(entry)[0]
    if "imports" not in table:
        line = f"imports = [{quoted}]"
        tries = [(_with_line(text, line), ImportEdit(entry, target, None, line))]
    else:
        edits = ((found, ImportEdit(entry, target, found[0], "")) for found in _IMPORTS.finditer(text))
        tries = [_longer(text, found, quoted, edit) for found, edit in edits]
    for changed, edit in tries:
        if _reads_as(changed, meant):
            return changed, edit
    raise CannotChange(f"add {entry!r} to it by hand")


def take_out(content: bytes, edit: ImportEdit, path: str) -> bytes:
    """The present content of the file ``path`` without the entry; all of it where its owner has taken the entry out.

    Raises CannotChange where that cannot be done alone, or where something else in ``imports`` names the target, which
    containerd must find or else does not start.
    """
    text = content.decode("utf-8", "surrogateescape")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        if edit.entry in text or edit.target in text:
            raise CannotChange(_by_hand(text, edit.entry if edit.entry in text else edit.target)) from None
        return content
    imports = table.get("imports")
    listed = list(imports) if isinstance(imports, list) else []
    if edit.entry in listed:
        listed.remove(edit.entry)
        text = _without(text, edit, table, listed)
    for name in listed:
        if posixpath.normpath(posixpath.join(posixpath.dirname(path), str(name))) == edit.target:
            raise CannotChange(_by_hand(text, str(name)))
    return text.encode("utf-8", "surrogateescape")


def _without(text: str, edit: ImportEdit, table: dict[str, Any], listed: list[object]) -> str:
    meant = [{**table, "imports": listed}]
    if not listed:
        meant.append({key: value for key, value in table.items() if key != "imports"})
    for candidate in _candidates(text, edit):
        if any(_reads_as(candidate, one) for one in meant):
            return candidate
    raise CannotChange(_by_hand(text, edit.entry))


def _candidates(text: str, edit: ImportEdit) -> Iterator[str]:
    """The exact way back first, then the entry alone with its comma, wherever its owner has moved it to."""
    after = re.escape(edit.after)
    patterns = [rf"^{after}[ \t]*(?:\r?\n|\Z)" if edit.before is None else rf"^{after}"]
    yield from _replaced(text, patterns[0], edit.before or "")
    for quoted in map(re.escape, _quoted(edit.entry)):
        for pattern in (
            rf"^[ \t]*{quoted}[ \t]*,?[ \t]*\r?\n",
            rf"{quoted}[ \t]*,[ \t]*",
            rf"[ \t]*,[ \t]*{quoted}",
            quoted,
        ):
            yield from _replaced(text, pattern, "")


def _replaced(text: str, pattern: str, by: str) -> Iterator[str]:
    for found in re.finditer(pattern, text, re.MULTILINE):
        yield f"{text[: found.start()]}{by}{text[found.end() :]}"


def _longer(text: str, found: re.Match[str], quoted: str, edit: ImportEdit) -> tuple[str, ImportEdit]:
    inside = found[0][:-1].rstrip(" \t,")
    after = f"{inside}{'' if inside.endswith('[') else ', '}{quoted}]"
    return f"{text[: found.start()]}{after}{text[found.end() :]}", replace(edit, after=after)


def _with_line(text: str, line: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    head = text[: table.start()] if (table := _FIRST_TABLE.search(text)) else text
    if found := _VERSION.search(head):
        return f"{text[: found.end()]}{newline}{line}{text[found.end() :]}"
    return f"{line}{newline}{text}"


def _reads_as(text: str, meant: dict[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == meant
    except tomllib.TOMLDecodeError:
        return False


def _quoted(entry: str) -> tuple[str, str]:
    """As a basic string, and as a literal one."""
    return tomli_w.dumps({"x": entry}).partition("= ")[2].rstrip("\n"), f"'{entry}'"


def _by_hand(text: str, entry: str) -> str:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    named = [one for one in lines if entry in one[1] and not one[1].startswith("#")]
    number, line = next(iter(named), next((one for one in lines if one[1].startswith("imports")), (0, "")))
    return f'remove "{entry}" from line {number} ({line}) by hand'

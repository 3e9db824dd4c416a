"""HAProxy's configuration language: sections of directives of words, written and read back. PURE.

``balancer`` says what is configured as words, never as text; how a word is written so that HAProxy reads the same one
again is decided here alone. The reader follows the same rules (HAProxy 2.6 configuration manual, section 2.2 "Quoting
and escaping"), so that what was rendered can be compared with what was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SECTION_KINDS = frozenset({"global", "defaults", "frontend", "backend", "ring"})
WORDS_MAX = 64  # HAProxy's MAX_LINE_ARGS
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=\[\]{}()*!<>^;|?&~-]+", re.ASCII)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_HEX = re.compile(r"[0-9A-Fa-f]{2}", re.ASCII)

Directive = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """``global``, ``backend replicas`` and so on, with its lines in order."""

    kind: str
    name: str | None
    directives: tuple[Directive, ...]

    def all(self, *keywords: str) -> tuple[Directive, ...]:
        """What follows these first words, for each line that begins with them."""
        size = len(keywords)
        return tuple(line[size:] for line in self.directives if line[:size] == keywords)


def write_config(sections: Sequence[Section]) -> bytes:
    """The file's content. Raises ValueError where a word cannot be written, which is a mistake of the caller's."""
    return "\n".join(_section(one) for one in sections).encode("ascii")


def parse_config(content: bytes) -> tuple[Section, ...]:
    """The sections of a file. Raises ValueError, with the line, for what HAProxy would not read as plain words."""
    found: list[tuple[str, str | None, list[Directive]]] = []
    for number, line in enumerate(content.decode("ascii").split("\n"), 1):
        try:
            words = tuple(_words(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if words and words[0] in SECTION_KINDS:
            found.append((words[0], words[1] if len(words) > 1 else None, []))
        elif words and not found:
            raise ValueError(f"line {number}: {words[0]!r} stands before any section")
        elif words:
            found[-1][2].append(words)
    return tuple(Section(kind, name, tuple(lines)) for kind, name, lines in found)


def write_word(word: str) -> str:
    """One word as HAProxy reads it back. Raises ValueError for an empty one and for a NUL, which it cannot hold."""
    if not word or "\0" in word:
        raise ValueError(f"{word!r} cannot be a word of HAProxy's configuration")
    if _PLAIN.fullmatch(word):
        return word
    if word.isascii() and word.isprintable() and "'" not in word:
        return f"'{word}'"
    return "".join(chr(octet) if _PLAIN.fullmatch(chr(octet)) else f"\\x{octet:02x}" for octet in word.encode())


def _section(section: Section) -> str:
    head = (section.kind,) if section.name is None else (section.kind, section.name)
    lines = [_line(head), *("    " + _line(words) for words in section.directives)]
    return "".join(line + "\n" for line in lines)


def _line(words: Directive) -> str:
    if not 1 <= len(words) <= WORDS_MAX:
        raise ValueError(f"a line of {len(words)} words: HAProxy takes 1 to {WORDS_MAX}")
    return " ".join(write_word(word) for word in words)


def _words(line: str) -> Iterator[str]:
    """Cut a line as HAProxy does. Octets are collected, since an escape may be a part of a character."""
    word: bytearray | None = None
    quote, at = "", 0
    while at < len(line):
        mark = line[at]
        at += 1
        if mark == quote:
            quote = ""
        elif not quote and mark in "'\"":
            quote, word = mark, word if word is not None else bytearray()
        elif not quote and mark in " \t":
            if word is not None:
                yield word.decode()
            word = None
        elif not quote and mark == "#":
            break
        elif quote == '"' and mark == "$":
            raise ValueError("a variable inside double quotes is no plain word")
        else:
            word = word if word is not None else bytearray()
            if mark == "\\" and quote != "'":
                octets, at = _escape(line, at)
                word += octets
            else:
                word += mark.encode()
    if quote:
        raise ValueError(f"a quote {quote} has no end")
    if word is not None:
        yield word.decode()


def _escape(line: str, at: int) -> tuple[bytes, int]:
    """What the escape whose mark stands at ``at`` means, and where it ends."""
    mark = line[at : at + 1]
    digits = line[at + 1 : at + 3]
    if mark == "x" and _HEX.fullmatch(digits):
        return bytes.fromhex(digits), at + 3
    if mark in _ESCAPES:
        return _ESCAPES[mark].encode(), at + 1
    if mark and mark in " #\\'\"$\t":
        return mark.encode(), at + 1
    raise ValueError(f"\\{mark} is no escape")

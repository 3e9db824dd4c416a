"""Digests: the names of content. PURE.

OCI Image Specification 1.1, descriptor.md "Digests": ``algorithm ":" encoded``. Sluice accepts the two registered
algorithms, sha256 and sha512, in lower-case hexadecimal, and nothing else.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from sluice.errors import DigestInvalid

HEX_LENGTH = {"sha256": 64, "sha512": 128}
_PATTERN = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})", re.ASCII)


class Hasher(Protocol):
    """The part of ``hashlib``'s objects that Sluice uses."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """The digest of all bytes so far, in lower-case hexadecimal."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """``algorithm`` is ``sha256`` or ``sha512``; ``hex`` has 64 or 128 lower-case hexadecimal digits."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``sha256:…`` or ``sha512:…``; raises DigestInvalid."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise DigestInvalid(
                f"digest {text[:160]!r} is invalid: expected sha256:<64 hex digits> or sha512:<128 hex digits>"
            )
        return cls(match[1] or match[3], match[2] or match[4])

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of ``data`` (whole content, in memory)."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hasher of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

"""The key that signs a registry's tokens, and the ones before it that are still accepted.

``server.tokens`` signs and verifies with these. A symmetric key: whoever can check a token could make one, so it never
leaves the machine. When it has been in use for long a new one signs, and the old one is accepted for as long as a token
lives, so that no token ends before its time. The file has one key a line, in hexadecimal: the signing one with the time
at which it was made, then former ones with the time until which they are accepted (both in seconds since 1970).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sluice.errors import ConfigInvalid
from sluice.pki.durable import create_durably, read_bounded, write_durably

KEY_BYTES = 32
KEY_LIFE_S = 90 * 86400
FORMER_MAX = 8
_FILE_BYTES_MAX = 4096
_LINE = re.compile(r"([0-9a-f]{64})(?: ([0-9]{1,12}))?")


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """``current`` signs since ``made_at``; each of ``former`` is accepted until the time beside it. PURE."""

    current: bytes
    made_at: float
    former: tuple[tuple[bytes, float], ...] = ()

    def accepted(self, now: float) -> Mapping[str, bytes]:
        """The keys that tokens may be signed with, by identifier (``kid``)."""
        former = {identifier(key): key for key, until in self.former if now < until}
        return {identifier(self.current): self.current, **former}

    def is_due(self, now: float) -> bool:
        """Whether another key should sign from now on."""
        return now >= self.made_at + KEY_LIFE_S

    def rotated(self, key: bytes, now: float, token_life_s: float) -> SigningKeys:
        """``key`` signs from ``now`` on; what was signed before is accepted for one token's life more."""
        former = ((self.current, now + token_life_s), *(one for one in self.former if now < one[1]))
        return SigningKeys(key, now, former[:FORMER_MAX])

    def render(self) -> bytes:
        """The file's content."""
        lines = [(self.current, self.made_at), *self.former]
        return "".join(f"{key.hex()} {int(when)}\n" for key, when in lines).encode()


def identifier(key: bytes) -> str:
    """What names a key in a token's head without telling anything about it."""
    return sha256(key).hexdigest()[:16]


def parse(content: bytes) -> SigningKeys | None:
    """The keys in a file; None where it is damaged."""
    found = [_LINE.fullmatch(line) for line in content.decode("latin-1").removesuffix("\n").split("\n")]
    keys = [(bytes.fromhex(one[1]), float(one[2] or 0)) for one in found if one is not None]
    return SigningKeys(*keys[0], tuple(keys[1:])) if keys and len(keys) == len(found) else None


def load_keys(path: Path, now: float) -> SigningKeys:
    """The keys, made on first use; of two processes that make them at once, both take what was there first.

    Raises ConfigInvalid where the file is damaged.
    """
    if (content := read_bounded(path, _FILE_BYTES_MAX)) is None:
        create_durably(path, SigningKeys(secrets.token_bytes(KEY_BYTES), now).render())
        content = read_bounded(path, _FILE_BYTES_MAX) or b""
    keys = parse(content)
    if keys is None:
        raise ConfigInvalid(
            f"token key {path} is damaged: it is not {KEY_BYTES} bytes in hexadecimal a line; remove it to have a new"
            " one made, which ends the tokens in use: clients get new ones by themselves"
        )
    return keys


def rotate_keys(path: Path, keys: SigningKeys, now: float, token_life_s: float) -> SigningKeys:
    """A new key signs from now on; it is on disk on return, so that no token outlives its key. Raises StorageFull or
    ConfigInvalid, and then nothing has changed."""
    rotated = keys.rotated(secrets.token_bytes(KEY_BYTES), now, token_life_s)
    write_durably(path, rotated.render())
    return rotated

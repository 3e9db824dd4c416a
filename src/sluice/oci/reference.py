"""Repository names, tags and references. PURE.

OCI Distribution Specification 1.1, "Pulling manifests": the grammar of ``<name>`` and ``<reference>``. Names are
limited to 255 characters in all (the limit that clients and other registries keep).
"""

from __future__ import annotations

import re
from typing import NewType

from sluice.errors import NameInvalid
from sluice.oci.digest import Digest

Repository = NewType("Repository", str)
Tag = NewType("Tag", str)
Reference = Tag | Digest

NAME_LENGTH_MAX = 255
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)


def parse_repository(text: str) -> Repository:
    """Validate a repository name; raises NameInvalid."""
    if len(text) > NAME_LENGTH_MAX:
        raise NameInvalid(f"repository name has {len(text)} characters; at most {NAME_LENGTH_MAX} are allowed")
    if _NAME.fullmatch(text) is None:
        raise NameInvalid(
            f"repository name {text!r} is invalid: lower-case letters, digits and single separators (. _ __ -)"
            " between slashes are allowed"
        )
    return Repository(text)


def parse_tag(text: str) -> Tag:
    """Validate a tag; raises NameInvalid."""
    if _TAG.fullmatch(text) is None:
        raise NameInvalid(
            f"tag {text[:160]!r} is invalid: up to 128 letters, digits, '_', '.', '-', not starting with '.' or '-'"
        )
    return Tag(text)


def parse_reference(text: str) -> Reference:
    """A digest where there is a colon, else a tag; raises DigestInvalid or NameInvalid."""
    return Digest.parse(text) if ":" in text else parse_tag(text)

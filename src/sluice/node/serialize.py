"""From a document to the bytes of a file, by a serializer, read back and compared. PURE.

What cannot be read back as what was meant is never written. The order of keys counts too: a runtime asks hosts in the
order in which they stand in the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping

import tomli_w
import yaml

from sluice.errors import ConfigInvalid

NOTICE = "Written by Sluice, which writes it again when the node's layout changes: see `sluice node status`."


def dump_toml(document: Mapping[str, object], name: str) -> bytes:
    """As TOML 1.0, keys that are no tables first. Raises ConfigInvalid where it does not come back the same."""
    raw = f"# {NOTICE}\n{tomli_w.dumps(document)}".encode()
    _require_same(document, tomllib.loads(raw.decode()), name)
    return raw


def dump_yaml(document: Mapping[str, object], name: str) -> bytes:
    """As YAML 1.1 in the document's order. Raises ConfigInvalid where it does not come back the same."""
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=120)
    raw = f"# {NOTICE}\n{text}".encode()
    _require_same(document, yaml.safe_load(raw), name)
    return raw


def _require_same(meant: object, read: object, name: str) -> None:
    if _ordered(meant) != _ordered(read):
        raise ConfigInvalid(f"{name} would not be read back as it was meant: report this with the node's layout")


def _ordered(value: object) -> object:
    """The value in a form that differs when the order of a mapping does."""
    if isinstance(value, Mapping):
        return [(key, _ordered(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_ordered(inner) for inner in value]
    return value

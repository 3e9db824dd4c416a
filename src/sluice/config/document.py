"""YAML as configuration is written in it: safe, and no key given twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def parse_yaml(raw: bytes) -> object:
    """Parse one document; raises ValueError with the reason in one line."""
    try:
        return yaml.load(raw, _UniqueKeys)  # noqa: S506 - the loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice, where the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

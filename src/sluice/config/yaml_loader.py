"""The YAML parser, and what it says about a broken document. Only ``document`` imports this."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

VALUES_MAX = 1 << 20
"""In one document, each counted as often as aliases repeat it."""
# Whatever a problem has in quotes may be the document's own text, but for the names of tokens and a tab.
_QUOTES_NOTHING = re.compile(r"(?:[^'\"]|'[,:?\[\]{}]'|'<[a-z ]+>'|'\\t')*")
_QUOTED = re.compile(r"['\"].*['\"]", re.DOTALL)
# What the constructors of numbers, switches, dates and the like raise for what they cannot read.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def load_yaml(raw: bytes) -> object:
    """Parse one document; raises ValueError with the problem and its place, and nothing of the text."""
    try:
        return _load(_UniqueKeys(raw))
    except RecursionError:
        reason = "it is nested too deeply"
    except yaml.reader.ReaderError as error:
        reason = f"it holds what is no text: {error.reason} (position {error.position})"
    except yaml.MarkedYAMLError as error:
        reason = _reason(error)
    except (yaml.YAMLError, ValueError):
        reason = "it cannot be parsed"
    raise ValueError(reason)


def _load(loader: _UniqueKeys) -> object:
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _count_values(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a reader meets who follows every alias; ``known`` has those of nodes that were met before.

    Raises MarkedYAMLError where they are too many: a few lines of aliases can stand for more than any memory holds.
    """
    if node in known:
        if not known[node]:
            raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
        return known[node]
    known[node] = 0
    if isinstance(node, yaml.MappingNode):
        inner = sum(_count_values(part, known) for pair in node.value for part in pair)
    else:
        inner = sum(_count_values(part, known) for part in node.value) if isinstance(node, yaml.SequenceNode) else 0
    if inner >= VALUES_MAX:
        raise yaml.MarkedYAMLError(problem=f"it has more than {VALUES_MAX} values", problem_mark=node.start_mark)
    known[node] = inner + 1
    return known[node]


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join((error.problem or error.context or "it cannot be parsed").split())
    if _QUOTES_NOTHING.fullmatch(problem) is None:
        problem = _QUOTED.sub("…", problem)
    mark = error.problem_mark or error.context_mark
    return problem if mark is None else f"{problem} (line {mark.line + 1}, column {mark.column + 1})"


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice, where the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, "a key is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Say where a value is that cannot be read as what it looks like, as ``2026-13-45`` as a date."""
        try:
            return super().construct_object(node, deep)
        except _UNREADABLE:
            raise yaml.constructor.ConstructorError(
                None, None, "a value is not what it looks like or is marked as: put it in quotes", node.start_mark
            ) from None

"""Documents as people write them: YAML or JSON, safe, and no key given twice.

What is wrong with one is said with its place and never with its text: a line of a file may be a password.
"""

from __future__ import annotations

import json


class _GivenTwiceError(ValueError):
    """A key of a JSON object."""


def parse_yaml(raw: bytes) -> object:
    """Parse one document; raises ValueError with the reason in one line, which quotes nothing of it."""
    from sluice.config.yaml_loader import load_yaml  # noqa: PLC0415 - 3 MiB that a process without YAML does not need

    return load_yaml(raw)


def parse_either(raw: bytes) -> object:
    """Parse one document of JSON or YAML; raises ValueError like ``parse_yaml``.

    JSON is tried first: it needs no YAML, which reads its escaped surrogate pairs as two characters that are none.
    """
    twice = False
    try:
        return json.loads(raw, object_pairs_hook=_unique)
    except _GivenTwiceError:
        twice = True
    except (ValueError, RecursionError):
        pass  # YAML, or broken: its parser says where
    document = parse_yaml(raw)
    if twice:  # by keys that only JSON reads as the same
        raise ValueError("a key is given twice")
    return document


def _unique(members: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(members)
    if len(found) != len(members):
        raise _GivenTwiceError
    return found

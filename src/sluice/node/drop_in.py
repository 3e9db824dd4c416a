"""The drop-in by which containerd gets its ``config_path``: what it is a copy of, and what has changed since. PURE.

``prepare`` writes it, ``preflight`` says where it hides what its owner has written into other files afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DROP_IN_DIRECTORY, DROP_IN_NAME = "conf.d", "99-sluice.toml"  # the last of a directory wins
Table = dict[str, Any]


def sections(tables: list[Table], plugin: str) -> Iterator[Table]:
    """A plugin's table as the versions of containerd put it together: that of the last file, or all merged."""
    found = [section(table, plugin) for table in tables]
    filled: list[Table] = [one for one in found if one]
    yield filled[-1] if filled else {}
    merged: Table = {}
    for one in filled:
        merged = merge(merged, one)
    yield merged


def section(table: Table, plugin: str) -> Table:
    """What one file says about a plugin; empty where it says nothing."""
    plugins = table.get("plugins", {})
    found = plugins.get(plugin, {}) if isinstance(plugins, dict) else {}
    return found if isinstance(found, dict) else {}


def merge(under: Table, over: Table) -> Table:
    """Both tables; a value of ``over`` goes before that of ``under``."""
    both = {key: merge(under[key], value) if _tables(under.get(key), value) else value for key, value in over.items()}
    return {**under, **both}


def hidden_keys(drop_in: Table, others: list[Table], plugin: str, *, merges: bool) -> tuple[str, ...]:
    """Which keys of ``plugin`` the ``others`` say something else about than the drop-in, which containerd takes.

    containerd 1.x takes the drop-in's table alone; 2.x merges (``merges``), so that what is new in another file counts
    there. ``config_path`` is what the drop-in is for, and no difference.
    """
    copy = section(drop_in, plugin)
    if not copy:
        return ()
    last, merged = (_without_path(one) for one in sections(others, plugin))
    copy = _without_path(copy)
    return tuple(_differing(merged, merge(merged, copy)) if merges else _differing(last, copy))


def _without_path(section: Table) -> Table:
    registry = section.get("registry")
    if not isinstance(registry, dict):
        return section
    left = {key: value for key, value in registry.items() if key != "config_path"}
    rest = {key: value for key, value in section.items() if key != "registry"}
    return {**rest, "registry": left} if left else rest


def _differing(one: Table, other: Table) -> Iterator[str]:
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if _tables(left, right):
            yield from (f"{key}.{inner}" for inner in _differing(one[key], other[key]))
        elif left != right:
            yield key


def _tables(one: object, other: object) -> bool:
    return isinstance(one, dict) and isinstance(other, dict)

"""Options made from the configuration's schema, and the configuration made from the options.

``serve`` takes every setting as a flag. The other commands take ``--data`` and ``--config``; what else they need to
know comes from the file and the environment, as it does for the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from sluice.config import CONFIG_VARIABLE, LEAVES, ConfigSource, Leaf

Result = TypeVar("Result")
_METAVARS = {
    "text": "TEXT",
    "path": "PATH",
    "size": "SIZE",
    "duration": "DURATION",
    "count": "NUMBER",
    "address": "HOST:PORT",
    "list": "NAME",
    "upstream": "[SCHEME://]HOST[:PORT][/PATH]",
    "registries": "NAME[=ADDRESS]",
}
_CONFIG = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help=f"YAML file with settings.  [env: {CONFIG_VARIABLE}]",
)


def with_settings(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command ``--config`` and one flag for each setting there is; it takes ``source``, to load it from."""
    return _sourced(command, list(LEAVES.values()))


def with_data(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command ``--config`` and ``--data``; it takes the outcome as ``config``."""
    return _configured(command, [LEAVES["data"]])


def _configured(command: Callable[..., Result], leaves: Sequence[Leaf]) -> Callable[..., Result]:
    @wraps(command)
    def load_first(source: ConfigSource, **given: Any) -> Result:
        return command(config=source.load(), **given)

    return _sourced(load_first, leaves)


def _sourced(command: Callable[..., Result], leaves: Sequence[Leaf]) -> Callable[..., Result]:
    @wraps(command)
    def gather(config_file: Path | None, **given: Any) -> Result:
        flags = {leaf.key: _plain(given.pop(_parameter(leaf.key))) for leaf in leaves}
        return command(source=ConfigSource(config_file, dict(os.environ), flags), **given)

    decorated: Callable[..., Result] = gather
    for leaf in reversed(leaves):
        decorated = _option(leaf)(decorated)
    return _CONFIG(decorated)


def default_text(leaf: Leaf) -> str:
    """How a default is written in help and manual; empty if there is none."""
    if leaf.default in (None, ()) or leaf.default == {}:
        return ""
    if leaf.kind == "switch":
        return "true" if leaf.default else "false"
    number = leaf.default
    if leaf.kind == "size" and isinstance(number, int):
        for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
            if number and number % factor == 0:
                return f"{number // factor}{unit}"
    if leaf.kind == "duration" and isinstance(number, int | float):
        for unit, seconds in (("h", 3600), ("m", 60)):
            if number and number % seconds == 0:
                return f"{number / seconds:g}{unit}"
        return f"{number:g}s"
    return str(leaf.default)


def _option(leaf: Leaf) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    default = default_text(leaf)
    summary = f"{leaf.summary[0].upper()}{leaf.summary[1:]}.".replace("`", "")
    text = f"{summary}  [env: {leaf.variable}{f'; default: {default}' if default else ''}]"
    name = _parameter(leaf.key)
    if leaf.kind == "switch":
        return click.option(f"{leaf.flag}/--no-{leaf.flag[2:]}", name, default=None, help=text)
    metavar = "|".join(leaf.choices) or _METAVARS[leaf.kind]
    return click.option(leaf.flag, name, metavar=metavar, multiple=leaf.kind in {"list", "registries"}, help=text)


def _parameter(key: str) -> str:
    return key.replace(".", "__")


def _plain(value: object) -> object:
    return ",".join(value) if isinstance(value, tuple) and value else value

"""Loading: the file, the environment and the flags merged over the defaults.

The only way in for the CLI. Each value carries where it came from, so that whatever is wrong with it becomes one
``ConfigInvalid`` that names the key, the value, its source and what to write instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sluice.config.document import parse_yaml
from sluice.config.reading import PIPE_S, read_named
from sluice.config.schema import LEAVES, VARIABLE_PREFIX, RegistryConfig
from sluice.config.shown import shown, shown_key
from sluice.errors import ConfigInvalid

CONFIG_FILE_BYTES = 1024 * 1024
"""Largest configuration file that is read, in bytes."""
CONFIG_VARIABLE = "SLUICE_CONFIG"
# Kubernetes gives every container variables about a Service named "sluice"; they are nobody's spelling mistake.
_SERVICE_LINK = re.compile(r"SLUICE_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_.*)?)")


# pydantic's own wording where it names no remedy.
_REMEDIES = {
    "int_parsing": "is not a number: write a whole number",
    "int_from_float": "is not a whole number: leave out the fraction",
    "int_type": "is not a number: write a whole number",
    "bool_parsing": "is not a switch: write true or false",
    "bool_type": "is not a switch: write true or false",
    "extra_forbidden": "is not a known key: see docs/configuration.md for the keys there are",
    "string_type": "is not text: put it in quotes",
    "string_pattern_mismatch": "has characters that break a header: leave out spaces, quotes and backslashes",
}
_SECTIONS = {key.rpartition(".")[0] for key in LEAVES} - {""}


@dataclass(frozen=True, slots=True)
class _Given:
    """A value and where it came from, in words."""

    value: object
    source: str


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Everything that a configuration is made of, to make it again when the file has changed."""

    file: Path | None
    environ: Mapping[str, str]
    flags: Mapping[str, object]

    @property
    def path(self) -> Path | None:
        """The file that is read, whichever way it was named."""
        named = self.environ.get(CONFIG_VARIABLE)
        return self.file if self.file is not None else (Path(named) if named else None)

    def load(self) -> RegistryConfig:
        """Read it all; raises ConfigInvalid."""
        return load_config(self.file, self.environ, self.flags)


def load_config(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> RegistryConfig:
    """Merge flags over environment over file over defaults.

    ``flags`` maps dotted keys to values; None means not given. Without ``file``, ``SLUICE_CONFIG`` may name one. An
    empty environment variable counts as unset. Raises ConfigInvalid.
    """
    chosen = ConfigSource(file, environ, flags).path
    given: dict[str, _Given] = {}
    if chosen is not None:
        given |= {key: _Given(value, f"file {chosen}") for key, value in _read_file(chosen)}
    given |= _from_environment(environ)
    given |= {
        key: _Given(value, f"flag {LEAVES[key].flag}")
        for key, value in flags.items()
        if value is not None and value != ()
    }
    try:
        return RegistryConfig.model_validate(_nested({key: entry.value for key, entry in given.items()}))
    except ValidationError as error:
        raise _explain(error, given) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    known = {leaf.variable: leaf.key for leaf in LEAVES.values()}
    given = {}
    for variable, value in environ.items():
        if not variable.startswith(VARIABLE_PREFIX) or value == "" or _SERVICE_LINK.fullmatch(variable):
            continue
        if variable in known:
            given[known[variable]] = _Given(value, f"environment variable {variable}")
        elif variable != CONFIG_VARIABLE and (near := difflib.get_close_matches(variable, known, 1, 0.85)):
            raise ConfigInvalid(
                f"environment variable {variable} is not a setting: did you mean {near[0]}? Rename or unset it"
            )
    return given


def _read_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        raw = read_named(path, CONFIG_FILE_BYTES, pipe_s=PIPE_S)
    except OSError as error:
        raise ConfigInvalid(f"config file {path} cannot be read: {error.strerror}; name a readable file") from error
    except ConfigInvalid as error:
        raise ConfigInvalid(f"config file {error.message}") from None
    if len(raw) > CONFIG_FILE_BYTES:
        raise ConfigInvalid(f"config file {path} is larger than {CONFIG_FILE_BYTES} bytes: name the right file")
    try:
        document = parse_yaml(raw)
    except ValueError as error:
        raise ConfigInvalid(f"config file {path} is not YAML: {error}") from None
    yield from _flatten({} if document is None else document, path, "")


def _flatten(document: object, path: Path, prefix: str) -> Iterator[tuple[str, object]]:
    if not isinstance(document, dict):
        where = f"{prefix.rstrip('.')} is {shown(document)}" if prefix else "the document is none"
        raise ConfigInvalid(f"{where} (file {path}): write a mapping of keys to values")
    for name, value in document.items():
        key = f"{prefix}{name}"
        if key in LEAVES:
            yield key, value
        elif key in _SECTIONS:
            short = f"{key}.address"
            if isinstance(value, str) and short in LEAVES:
                yield short, value
            else:
                yield from _flatten({} if value is None else value, path, f"{key}.")
        else:
            raise _unknown(key, path)


def _unknown(key: str, path: Path) -> ConfigInvalid:
    near = difflib.get_close_matches(key, [*LEAVES, *_SECTIONS], 1, 0.5)
    by_leaf = [known for known in LEAVES if known.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = (
        f"did you mean {(by_leaf or near)[0]}?"
        if by_leaf or near
        else "see docs/configuration.md for the keys there are"
    )
    return ConfigInvalid(f"{shown_key(key)} is not a known key (file {path}): {hint}")


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


def _explain(error: ValidationError, given: Mapping[str, _Given]) -> ConfigInvalid:
    """Turn the first problem into one sentence with key, value, source and remedy."""
    problem = error.errors(include_url=False)[0]
    context = problem.get("ctx", {})
    where = [str(part) for part in problem["loc"] if isinstance(part, str)]
    key = ".".join([*where, str(context["key"])] if "key" in context else where)
    known = next((known for known in LEAVES if key == known or key.startswith(f"{known}.")), None)
    if known is not None and known != "registries":
        key = known
    reason = problem["msg"].removeprefix("Value error, ")
    reason = _REMEDIES.get(problem["type"], reason.replace("Input should be", "must be"))
    entry = given.get(key)
    if entry is None and key in LEAVES:
        entry = _Given(LEAVES[key].default, "default")
    if entry is None and key.startswith("registries.") and "registries" in given:
        section = problem["input"]
        value = section.get(context["key"]) if "key" in context and isinstance(section, dict) else section
        entry = _Given(value, given["registries"].source)
    if problem["type"] == "extra_forbidden":  # whose value may be a password
        return ConfigInvalid(f"{shown_key(key)} {reason.replace(':', f' ({entry.source}):' if entry else ':', 1)}")
    came = f" is {shown(entry.value)} ({entry.source})" if entry is not None else ""
    return ConfigInvalid(f"{key}{came}: {reason}")

"""Reading and writing the cluster's documents: YAML or JSON, whole, bounded, with every error named.

The same for a file on a node, a laboratory's directory and a custom resource.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sluice.config.document import parse_either
from sluice.config.reading import PIPE_S
from sluice.config.section import PrivateSection
from sluice.config.shown import shown, shown_key
from sluice.errors import ConfigInvalid
from sluice.pki.durable import read_bounded

DOCUMENT_BYTES_MAX = 4 << 20
Document = TypeVar("Document", bound=BaseModel)


def parse_document(model: type[Document], raw: bytes, name: str) -> Document:
    """Raises ConfigInvalid, which names the document, the field, the value and the remedy; a secret's value never."""
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise ConfigInvalid(f"{name} has more than {DOCUMENT_BYTES_MAX} bytes: name the right document")
    return validate_document(model, _load(raw, name), name)


def _load(raw: bytes, name: str) -> object:
    try:
        return parse_either(raw)
    except ValueError as error:
        raise ConfigInvalid(f"{name} is neither YAML nor JSON: {error}") from None


def validate_document(model: type[Document], value: object, name: str) -> Document:
    """``parse_document`` for what has been parsed already."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ConfigInvalid(f"{name}: {_explain(model, error)}") from None


def load_document(model: type[Document], path: Path) -> Document:
    """From a file, or a pipe that soon ends; raises ConfigInvalid, also where there is none."""
    raw = read_bounded(path, DOCUMENT_BYTES_MAX, pipe_s=PIPE_S)
    if raw is None:
        raise ConfigInvalid(f"{path} does not exist: name the file with the {model.__name__}")
    return parse_document(model, raw, str(path))


def dump_document(document: BaseModel) -> bytes:
    """As JSON in the model's order, with a newline; what is at its default is left out."""
    value = document.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(value, indent=2, ensure_ascii=True).encode() + b"\n"


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] in {"extra_forbidden", "invalid_key"}:
        return f"{_unknown(model, first['loc'])}: leave it out, or look for a spelling mistake"
    key = ".".join(str(part) for part in (*first["loc"], *_conflicting(first)))
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] in {"literal_error", "model_type"}:
        reason = first["msg"].replace("Input should be", "is not what it should be:")
    if first["type"] == "missing":
        return f"{key} is missing: write it"
    return f"{key or 'the document'}{_given(model, first)} {reason}"


def _given(model: type[BaseModel], first: ErrorDetails) -> str:
    """The refused value in brackets; nothing where it may be a secret or is a section or the whole document."""
    private = issubclass(model, PrivateSection) or {"key", "password", "user"} & set(first["loc"])
    whole = not first["loc"] or first["type"] == "conflict" or isinstance(first["input"], BaseModel)
    return "" if private or whole else f" ({shown(first['input'])})"


def _unknown(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """An unknown key without its value. In a secret document ``password:hunter2`` is a key, so that one shows only
    where it looks like a known one."""
    name, where = str(place[-1]), ".".join(map(str, place[:-1]))
    known = _key_names(model)
    near = name.isidentifier() and difflib.get_close_matches(name, known, 1, 0.75)
    if issubclass(model, PrivateSection) and name not in known and not near:
        return f"{where or 'the document'} has a key that is not known and not shown"
    return f"{'.'.join(filter(None, (where, shown_key(name))))} is not a known key"


def _key_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _key_names(part)
    return names


def _conflicting(first: ErrorDetails) -> tuple[str, ...]:
    context = first.get("ctx", {})
    return (str(context["key"]),) if "key" in context else ()

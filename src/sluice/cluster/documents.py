"""Reading and writing the cluster's documents: YAML or JSON, whole, bounded, with every error named.

The same for a file on a node, a laboratory's directory and a custom resource.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sluice.config.document import parse_either
from sluice.errors import ConfigInvalid
from sluice.pki.durable import read_bounded

DOCUMENT_BYTES_MAX = 4 << 20
SHOWN_LENGTH_MAX = 160  # characters of a refused value
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
        raise ConfigInvalid(f"{name}: {_explain(error)}") from None


def load_document(model: type[Document], path: Path) -> Document:
    """From a file; raises ConfigInvalid, also where there is none."""
    raw = read_bounded(path, DOCUMENT_BYTES_MAX)
    if raw is None:
        raise ConfigInvalid(f"{path} does not exist: name the file with the {model.__name__}")
    return parse_document(model, raw, str(path))


def dump_document(document: BaseModel) -> bytes:
    """As JSON in the model's order, with a newline; what is at its default is left out."""
    value = document.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(value, indent=2, ensure_ascii=True).encode() + b"\n"


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in (*first["loc"], *_conflicting(first)))
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "is not a known key: leave it out, or look for a spelling mistake"
    if first["type"] in {"literal_error", "model_type"}:
        reason = first["msg"].replace("Input should be", "is not what it should be:")
    if first["type"] == "missing":
        reason = "is missing: write it"
    given = first.get("input")
    private = {"key", "password", "user"} & {str(part) for part in first["loc"]}
    shown = (
        "" if private or not isinstance(given, str | int | float | bool) else f" ({ascii(given)[:SHOWN_LENGTH_MAX]})"
    )
    return f"{key or 'the document'}{shown} {reason}"


def _conflicting(first: object) -> tuple[str, ...]:
    context = first.get("ctx") if isinstance(first, dict) else None
    return (str(context["key"]),) if isinstance(context, dict) and "key" in context else ()

"""The tables of ``docs/node.md``, written from the documents' models so that they cannot say anything else.

The page is written by hand up to the first of them; ``manual`` is the page that is made from the schema as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from annotated_types import Ge, Le, MaxLen
from pydantic.fields import FieldInfo

from sluice.cluster.layout import (
    BalancerLayout,
    Login,
    MirroredRegistry,
    NodeLayout,
    NodeSecrets,
    Paths,
    Remote,
    Replica,
    ReplicaPod,
)
from sluice.config.section import Section
from sluice.config.values import Kind
from sluice.errors import ConfigInvalid
from sluice.pki.durable import PUBLIC_MODE, write_durably

TABLES_BEGIN = "## All fields\n"
INTRODUCTION = (
    "Unknown fields are refused. A field without a default can be left out unless it is `required`. "
    "This part is generated: `sluice node-docs docs/node.md`.\n"
)
NAMES: dict[type[Section], str] = {
    NodeLayout: "layout",
    MirroredRegistry: "registry",
    Replica: "replica",
    Remote: "remote",
    BalancerLayout: "balancer",
    ReplicaPod: "pod",
    Paths: "paths",
    NodeSecrets: "secrets",
    Login: "login",
}
"""The sections in the page's order, and what each is called there."""
KINDS = {"count": "number", "upstream": "[scheme://]host[:port][/path]"}
"""Words for kinds of values that the configuration's page has other ones for."""


@click.command("node-docs", hidden=True)
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def node_docs(page: Path) -> None:
    """Write the tables of all fields into PAGE, which is docs/node.md."""
    write_durably(page, with_tables(page.read_text(encoding="utf-8")).encode(), mode=PUBLIC_MODE)


def with_tables(page: str) -> str:
    """The page as it is up to its tables, and these anew. Raises ConfigInvalid where it has no place for them."""
    text, heading, _ = page.partition(TABLES_BEGIN)
    if not heading:
        raise ConfigInvalid(
            f"the page has no line {TABLES_BEGIN.strip()!r}, after which its tables go: name docs/node.md"
        )
    return "\n".join([f"{text}{heading}", INTRODUCTION, *(_table(model) for model in NAMES)])


def _table(model: type[Section]) -> str:
    about = " ".join((model.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
    lines = [f"### {NAMES[model]}", "", about, "", "| Field | Type | Default | Meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *_rows(model), ""])


def _rows(model: type[Section]) -> Iterator[str]:
    hints = get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {_type(hints[name])} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if field.is_required():
        return "required"
    if value is None or value == () or isinstance(value, Section):
        return ""
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, tuple) else f"`{value}`"


def _type(hint: Any) -> str:
    """In words: ``list of IP address``, ``number, 1 to 65535``."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return _marked(inner, [*marks, *(one for mark in marks for one in getattr(mark, "metadata", ()))])
    if get_origin(hint) is tuple:
        return f"list of {_type(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if type(None) in get_args(hint):
        return _type(next(one for one in get_args(hint) if one is not type(None)))
    if hint is bool:
        return "`true`, `false`"
    return f"[{NAMES[hint]}](#{NAMES[hint]})"


def _marked(inner: Any, marks: list[Any]) -> str:
    kind = next((mark.name for mark in marks if isinstance(mark, Kind)), None) or _type(inner)
    low = next((mark.ge for mark in marks if isinstance(mark, Ge)), None)
    high = next((mark.le for mark in marks if isinstance(mark, Le)), None)
    most = next((mark.max_length for mark in marks if isinstance(mark, MaxLen)), None)
    bounds = f", {low} to {high}" if low is not None and high is not None else ""
    return f"{KINDS.get(kind, kind)}{bounds}{f', at most {most}' if most is not None else ''}"

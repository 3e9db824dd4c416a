"""Printing results: JSON for programs, aligned columns for people.

Columns are never cut or wrapped, since a digest that is cut is of no use to whoever copies it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import click

OUTPUT = click.option(
    "--output",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="How to print the result.",
)


def show_record(record: Mapping[str, object], output: str, text: str) -> None:
    """Print one result: as a JSON object, or as the text made for people."""
    click.echo(json.dumps(record, ensure_ascii=False) if output == "json" else text)


def show_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], output: str) -> None:
    """Print many results: as a JSON array of whole objects, or the named members in columns below a heading."""
    if output == "json":
        click.echo(json.dumps(list(rows), ensure_ascii=False))
        return
    cells = [[column.upper().replace("_", " ") for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def when(seconds: float) -> str:
    """A time for people, in UTC: ``2026-01-31 12:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def size(count: float) -> str:
    """A number of bytes for people: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextmanager
def busy(text: str) -> Iterator[Callable[[object], None]]:
    """Show on a terminal that work goes on; yields a function that takes the work's progress."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # slow to import, and most commands do without  # noqa: PLC0415

    with Console(stderr=True).status(text) as status:
        yield lambda progress: status.update(f"{text}: {_progress(progress)}")


def _progress(progress: object) -> str:
    if isinstance(progress, Mapping):
        return ", ".join(f"{name} {value}" for name, value in progress.items())
    return str(progress)


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)

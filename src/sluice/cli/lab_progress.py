"""What one sees while a laboratory comes up: a table that fills itself on a terminal, lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from sluice.lab.topology import Topology
from sluice.lab.up import GROUND, IMAGES

FRAMES_PER_S = 10


class Progress:
    """Which parts are ready, and since when. ``seconds``: how long it has taken so far."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ready: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def tell(self, name: str, state: str) -> None:
        """Take what ``raise_lab`` tells."""
        if state == "ready":
            self._ready[name] = self.seconds
            self.show(name)

    def show(self, name: str) -> None:
        """Say that one is ready."""
        click.echo(f"lab: {name} ready after {self._ready[name]:.1f} s", err=True)


class Picture(Progress):
    """The same as a table: a line for each machine, a column for each kind of part."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self._topology = topology

    def show(self, name: str) -> None:
        """Nothing: the next frame shows it."""

    def __rich__(self) -> Table:
        kinds = list(dict.fromkeys(part.kind for part in self._topology.parts))
        names = {part.name for part in self._topology.parts}
        table = Table(title=f"laboratory, {self.seconds:.1f} s", title_justify="left", box=None, pad_edge=False)
        for column in ("machine", "address", *kinds):
            table.add_column(column)
        for machine in self._topology.machines:
            cells = [machine.name if kind == "upstream" else f"{machine.name}/{kind}" for kind in kinds]
            cells = [cell if cell in names else "" for cell in cells]
            table.add_row(machine.name, machine.address, *map(self._cell, cells))
        for name in (GROUND, IMAGES):
            table.add_row(name, "", self._cell(name))
        return table

    def _cell(self, name: str) -> str | Spinner:
        if not name:
            return ""
        ready = self._ready.get(name)
        return Spinner("dots") if ready is None else f"[green]✓[/green] {ready:.1f} s"


@contextlib.contextmanager
def shown_progress(topology: Topology) -> Iterator[Progress]:
    """Show what is told, in the way that standard error can."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    picture = Picture(topology)
    with Live(picture, console=Console(stderr=True), refresh_per_second=FRAMES_PER_S):
        yield picture

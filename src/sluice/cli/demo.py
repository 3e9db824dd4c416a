"""``make run``: a cluster of real parts on this machine, and the story that it tells.

Brings a laboratory up, has ``lab/story`` told on it, shows what happened as a table, and leaves the laboratory to
whoever wants to try more. Ctrl-C takes all of it away, at any moment.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from sluice.cli.lab_progress import shown_progress
from sluice.cli.show import show_rows
from sluice.errors import Unavailable
from sluice.lab.down import take_down
from sluice.lab.ground import find_init
from sluice.lab.laboratory import open_laboratory
from sluice.lab.scene import LabScene
from sluice.lab.state import DEFAULT_DIRECTORY, LabDirectory
from sluice.lab.story import Happened, Story
from sluice.lab.topology import LabShape, plan_topology
from sluice.lab.up import raise_lab

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WATCH_S = 0.5


@click.command(hidden=True)
@click.option("--once", is_flag=True, help="End after the story instead of waiting for Ctrl-C.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the laboratory's files are.",
)
def demo(once: bool, directory: Path) -> int:
    """Bring a cluster up, pull on it, and kill a replica in the middle of a pull."""
    shape = LabShape()
    with _taken_down(LabDirectory(directory)) as ours:
        with shown_progress(plan_topology(shape)) as progress:
            raise_lab(directory, shape, progress.tell)
            ours.set()
        say(f"the laboratory is up after {progress.seconds:.1f} s, in Proxy mode")
        story = Story(LabScene(open_laboratory(directory)), say)
        story.tell()
        _summarise(story.happened, directory)
        if not once:
            _wait(LabDirectory(directory))
    say("ended; nothing is left of it")
    return 0


def say(text: str) -> None:
    """One line of the story, on standard error."""
    click.echo(f"demo: {text}", err=True)


@contextlib.contextmanager
def _taken_down(directory: LabDirectory) -> Iterator[threading.Event]:
    """Take the laboratory away when the block ends, however it does; the second Ctrl-C waits until that is done.

    Only one that the block has said is ours: another's may run in the same directory.
    """
    ours = threading.Event()
    # A shell that starts us in the background has SIGINT ignored; SIGTERM is to tidy up, too.
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield ours
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if ours.is_set():
            say("taking the laboratory away")
            take_down(directory)


def _summarise(happened: list[Happened], directory: Path) -> None:
    click.echo("\nWhat happened:\n")
    rows = [{"what": one.what, "outcome": one.outcome, "took": f"{one.seconds:.2f} s"} for one in happened]
    if sys.stdout.isatty():
        _draw(rows)
    else:
        show_rows(rows, ("what", "outcome", "took"), "human")
    program = Path(sys.executable).with_name("sluice")
    sluice = shlex.quote(os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program))
    at = "" if directory == DEFAULT_DIRECTORY else f" --directory {shlex.quote(str(directory))}"
    commands = (
        f"lab status{at}",
        f"lab pull{at} worker-2 lab/large-1:1",
        f"lab fault{at} freeze cp-1/replica",
        f"lab fault{at} heal cp-1",
        f"lab exec{at} worker-1 -- curl -s http://127.0.0.1:5001/v2/lab/hello/tags/list",
        f"lab logs{at} cp-1/replica",
    )
    listed = "\n".join(f"  {sluice} {command}" for command in commands)
    click.echo(f"\nThe laboratory runs on. Try in another terminal:\n\n{listed}\n")


def _draw(rows: list[dict[str, str]]) -> None:
    from rich.console import Console  # slow to import, and only a terminal shows tables  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("what", "outcome", "took")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def _wait(directory: LabDirectory) -> None:
    """Until Ctrl-C, or until the laboratory was taken away from elsewhere."""
    say("Ctrl-C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        while find_init(directory.path) is not None:
            time.sleep(WATCH_S)
        raise Unavailable("the laboratory was ended from elsewhere")

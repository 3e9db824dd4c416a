"""``sluice gc``, ``fsck`` and ``tags``: what the registry holds, whether it is whole, and what can go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from sluice.cli.options import with_data
from sluice.cli.reach import pages, perform
from sluice.cli.show import OUTPUT, busy, show_record, show_rows, size, when
from sluice.config import RegistryConfig


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@OUTPUT
@with_data
def gc(dry_run: bool, output: str, config: RegistryConfig) -> None:
    """Remove content that no tag reaches and that nobody touched for gc.grace_s."""
    with busy("collecting garbage") as progress:
        report = perform(config, "gc", {"dry_run": dry_run}, progress)
    verb = "would remove" if dry_run else "removed"
    text = f"{verb} {report['manifests']} manifests and {report['blobs']} blobs ({size(report['bytes'])})"
    if not dry_run:
        text += f"; freed {size(report['unlinked_bytes'])} of files condemned before"
    show_record(report, output, text)


@click.command()
@click.option("--repair", is_flag=True, help="Take damaged files out of service and say what is incomplete then.")
@OUTPUT
@with_data
def fsck(repair: bool, output: str, config: RegistryConfig) -> int:
    """Check every file and row; exit code 1 if anything is wrong."""
    with busy("checking") as progress:
        report = perform(config, "fsck", {"repair": repair}, progress)
    show_record(report, output, "\n".join(_findings(report)))
    return 0 if report["clean"] else 1


@click.command()
@click.argument("repository", required=False)
@click.option("--history", metavar="TAG", help="Show where this tag of the repository pointed, newest first.")
@OUTPUT
@with_data
def tags(repository: str | None, history: str | None, output: str, config: RegistryConfig) -> None:
    """List the tags of REPOSITORY, or of all repositories."""
    if history is not None:
        if repository is None:
            raise click.UsageError("--history needs the repository too: sluice tags REPOSITORY --history TAG")
        rows = perform(config, "history", {"repository": repository, "tag": history})["moves"]
        columns: tuple[str, ...] = ("time", "digest", "actor")
    else:
        rows = list(pages(config, "tags", "tags", {"repository": repository}))
        columns = ("repository", "tag", "digest", "updated")
    if output == "human":
        rows = [{**row, "time": when(row["at"]), "updated": when(row["at"])} for row in rows]
    show_rows(rows, columns, output)


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    """A report in lines: each finding, what was left out of the list, and the outcome."""
    for complaint in report["index"]:
        yield f"index: {complaint}"
    for found in report["damaged"]:
        moved = f"; moved to {found['quarantined']}" if found["quarantined"] else ""
        yield f"damaged: {found['digest']} in {', '.join(found['repositories']) or 'no repository'}:" + (
            f" {found['problem']}{moved}"
        )
    for found in report["strays"]:
        moved = f"; moved to {found['quarantined']}" if found["quarantined"] else ""
        yield f"stray: {found['path']}, {size(found['bytes'])}{moved}"
    for row in report["rows"]:
        yield f"rows: {row}"
    for image in report["incomplete"]:
        yield f"incomplete: {image['name']} lacks {', '.join(image['missing'])}"
    for sort, count in report["counts"].items():
        if count > len(report[sort]):
            yield f"{sort}: {count - len(report[sort])} more"
    yield f"checked {report['contents']} files, {size(report['bytes'])}: {_outcome(report)}"


def _outcome(report: Mapping[str, Any]) -> str:
    if report["clean"]:
        return "everything is whole"
    if report["repaired"]:
        return "damage was put away; push what is incomplete again"
    return "not everything is whole; sluice fsck --repair puts damage away"

"""``sluice cache``: what a cache holds, what it must keep, and what it is to fetch or forget."""

from __future__ import annotations

import platform as machine
from collections.abc import Mapping
from typing import Any

import click

from sluice.cli.options import with_data
from sluice.cli.reach import pages, perform
from sluice.cli.show import OUTPUT, busy, show_record, show_rows, size, when
from sluice.config import RegistryConfig

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@click.group()
def cache() -> None:
    """See and steer what Proxy mode keeps.

    IMAGE is NAME[:TAG] or NAME@DIGEST, with the registry's name in front where it is not the default upstream's:
    docker.io/library/busybox:1.36.
    """


@cache.command()
@OUTPUT
@with_data
def status(output: str, config: RegistryConfig) -> None:
    """Show how full the cache is, what runs, and whether the upstreams answer."""
    report = perform(config, "cache status", {})
    show_record(report, output, "\n".join(_lines(report)))


@cache.command(name="list")
@OUTPUT
@with_data
def list_images(output: str, config: RegistryConfig) -> None:
    """List the images that are held. OWN is what would come free if one left, the rest of SIZE is shared."""
    rows = list(pages(config, "cache list", "images", {}))
    if output == "human":
        rows = [
            {**row, "size": size(row["bytes"]), "own": size(row["own_bytes"]), "last used": when(row["used_at"])}
            | {"state": _state(row)}
            for row in rows
        ]
    show_rows(rows, ("image", "digest", "size", "own", "last used", "state"), output)


@cache.command()
@click.argument("image")
@OUTPUT
@with_data
def pin(image: str, output: str, config: RegistryConfig) -> None:
    """Nail a tag to what it names now: it neither moves nor leaves the cache."""
    report = perform(config, "cache pin", {"image": image})
    show_record(report, output, f"{report['image']} is pinned to {report['digest']}")


@cache.command()
@click.argument("image")
@OUTPUT
@with_data
def unpin(image: str, output: str, config: RegistryConfig) -> None:
    """Let a pinned tag move and leave again."""
    report = perform(config, "cache unpin", {"image": image})
    show_record(report, output, f"{report['image']} is not pinned")


@cache.command()
@click.argument("image", required=False)
@click.option("--all", "everything", is_flag=True, help="Everything that is not pinned, protected, in use or pushed.")
@OUTPUT
@with_data
def purge(image: str | None, everything: bool, output: str, config: RegistryConfig) -> None:
    """Take IMAGE out of the cache now."""
    if (image is None) != everything:
        raise click.UsageError("name one image, or give --all")
    with busy("purging") as progress:
        report = perform(config, "cache purge", {"image": image, "all": everything}, progress)
    text = f"purged {report['purged']} images ({size(report['bytes'])})"
    lines = [text, *(f"kept: {one['reason']}" for one in report["kept"])]
    if report["kept_count"] > len(report["kept"]):
        lines.append(f"kept: {report['kept_count'] - len(report['kept'])} more")
    show_record(report, output, "\n".join(lines))


@cache.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Which of an index's images to fetch; may be repeated.  [default: this machine's]",
)
@OUTPUT
@with_data
def warm(images: tuple[str, ...], platforms: tuple[str, ...], output: str, config: RegistryConfig) -> None:
    """Pull each IMAGE into the cache of the running server."""
    wanted = list(platforms) or [host_platform()]
    rows = []
    for image in images:
        with busy(f"warming {image}") as progress:
            report = perform(config, "cache warm", {"image": image, "platforms": wanted}, progress)
        rows.append({**report, "name": image})
    if output == "human":
        rows = [{**row, "image": row["name"], "size": size(row["bytes"])} for row in rows]
    show_rows(rows, ("image", "digest", "manifests", "blobs", "size", "unkept"), output)


def host_platform() -> str:
    """This machine's platform as image indexes name it."""
    name = machine.machine()
    return f"linux/{_ARCHITECTURES.get(name, name)}"


def _lines(report: Mapping[str, Any]) -> list[str]:
    bound = size(report["max_bytes"]) if report["max_bytes"] else "no bound"
    oldest = "-" if report["oldest_use"] is None else when(report["oldest_use"])
    lines = [
        f"mode        {report['mode'] or 'no server runs'}",
        f"used        {size(report['used_bytes'])} of {bound}",
        f"  held      {size(report['held_bytes'])}",
        f"  filling   {size(report['granted_bytes'])}",
        f"  leaving   {size(report['condemned_bytes'])}",
        f"free        {size(max(0, report['free_bytes']))} beyond the reserve of {size(report['reserve_bytes'])}",
        f"images      {report['images']}, {report['pinned']} pinned, {report['protected']} protected",
        f"fills       {report['fills_active']} running, {report['fills_queued']} waiting",
        f"evicted     {report['evicted_images']} images, {size(report['evicted_bytes'])}",
        f"oldest use  {oldest}",
    ]
    return lines + [f"upstream    {name}: {state}" for name, state in report["upstreams"].items()]


def _state(row: Mapping[str, Any]) -> str:
    states = [name for name in ("pinned", "protected", "pushed") if row[name]]
    return ",".join([*states, *([] if row["complete"] else ["incomplete"])]) or "-"

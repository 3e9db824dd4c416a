"""``sluice lab``: a whole cluster of real parts on one machine, in network namespaces; and faults in it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from sluice.cli.lab_progress import shown_progress
from sluice.cli.show import OUTPUT, show_record, show_rows, size
from sluice.cluster.documents import validate_document
from sluice.errors import ConfigInvalid, NameInvalid
from sluice.lab.down import take_down
from sluice.lab.faults import FAULTS
from sluice.lab.ground import environment, require_root
from sluice.lab.images import Ballast, write_image
from sluice.lab.laboratory import full_name, open_laboratory
from sluice.lab.parts import command_variables
from sluice.lab.state import DEFAULT_DIRECTORY, LabDirectory
from sluice.lab.topology import (
    CONTROL_PLANES_MAX,
    DISK_MIB_MAX,
    DISK_MIB_MIN,
    WORKERS_MAX,
    LabShape,
    UpstreamKind,
    plan_topology,
)
from sluice.lab.up import raise_lab
from sluice.oci.reference import parse_tag

DIRECTORY = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the laboratory's files are.",
)
BALLAST_MIB_MAX = 20 << 10
LOG_LINES = 20
"""How many lines of each part's log are shown where the user does not say."""
STOPPED_BADLY = 1
UP = "sluice lab up"
FLAGS = {
    "prefix": "--upstream-path",
    "outside.address": "--upstream",
    "outside.user": "--upstream-user",
    "outside.password_file": "--upstream-password-file",
    "outside.ca": "--upstream-ca",
}
"""The flags that are not called like the key of the shape which they set."""


@click.group()
def lab() -> None:
    """Run a whole cluster on this machine: registry replicas, containerd and HAProxy on every node, an upstream.

    Each node is a network namespace with an address of its own. The machine's own network, mounts and containerd are
    not touched, and `sluice lab down` leaves nothing. Needs root.
    """


@lab.command()
@click.option(
    "--control-planes",
    type=click.IntRange(1, CONTROL_PLANES_MAX),
    default=3,
    show_default=True,
    help="Nodes with a registry replica.",
)
@click.option("--workers", type=click.IntRange(0, WORKERS_MAX), default=2, show_default=True, help="Nodes without one.")
@click.option(
    "--mode",
    type=click.Choice(["Proxy", "Direct", "Local"], case_sensitive=False),
    default="Proxy",
    show_default=True,
    help="Where nodes get their images from.",
)
@click.option(
    "--upstream",
    default="anonymous",
    show_default=True,
    metavar="anonymous|basic|bearer|ADDRESS",
    help="A registry in the laboratory that lets everybody in or asks for a password, or one outside, by HTTPS.",
)
@click.option("--upstream-path", metavar="PATH", help="Path below which the laboratory's upstream holds the images.")
@click.option("--upstream-user", metavar="NAME", help="User at ADDRESS; needs --upstream-password-file.")
@click.option(
    "--upstream-password-file", type=click.Path(path_type=Path), metavar="FILE", help="Its first line is the password."
)
@click.option(
    "--upstream-ca", type=click.Path(path_type=Path), metavar="FILE", help="CA of ADDRESS, beside the system's, as PEM."
)
@click.option(
    "--replica-disk-mib",
    type=click.IntRange(DISK_MIB_MIN, DISK_MIB_MAX),
    default=2048,
    show_default=True,
    help="Size of each replica's disk, in MiB.",
)
@DIRECTORY
@OUTPUT
def up(directory: Path, output: str, **given: Any) -> None:
    """Bring it up; returns when every part answers. Ctrl-C before that takes everything away again."""
    shape = _shape(given)
    topology = plan_topology(shape)
    with shown_progress(topology) as progress:
        raise_lab(directory, shape, progress.tell)
        # It is up and stays up: whoever is too late with Ctrl-C shall not be told otherwise by our exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    record = {"directory": str(directory.absolute()), "mode": shape.mode, "seconds": round(progress.seconds, 2)}
    at = "" if directory == DEFAULT_DIRECTORY else f" --directory {shlex.quote(str(directory))}"
    image = "IMAGE" if shape.outside is not None else "lab/hello:1"
    show_record(
        record,
        output,
        f"The laboratory is up after {progress.seconds:.1f} s. Try:\n"
        f"  sluice lab status{at}\n"
        f"  sluice lab pull{at} {topology.nodes[-1].name} {image}\n"
        f"  sluice lab down{at}",
    )


def _shape(given: dict[str, Any]) -> LabShape:
    """Raises ConfigInvalid with the flag, the value and what is allowed."""
    try:
        return validate_document(LabShape, _wanted(given), UP)
    except ConfigInvalid as error:
        # The document's own words, but for its key: whoever typed a flag looks for that.
        key = re.compile(rf"(?<=^{UP}: )[a-z_.]+")
        raise ConfigInvalid(key.sub(lambda found: FLAGS.get(found[0], found[0]), error.message)) from None


def _wanted(given: dict[str, Any]) -> dict[str, object]:
    """The shape from what was given, by the names that the document has."""
    upstream, path = given.pop("upstream"), given.pop("upstream_path")
    outside = {key.removeprefix("upstream_"): given.pop(key) for key in list(given) if key.startswith("upstream_")}
    wanted = {**given, "mode": given["mode"].lower(), "prefix": (path or "").strip("/")}
    if upstream in get_args(UpstreamKind):
        meant = next((key for key, value in outside.items() if value is not None), None)
        if meant is not None:
            raise click.UsageError(f"--upstream-{meant.replace('_', '-')} is for an --upstream ADDRESS: leave it out")
        return {**wanted, "upstream": upstream}
    files = {key: None if value is None else str(Path(value).absolute()) for key, value in outside.items()}
    return {**wanted, "outside": {**files, "user": outside["user"], "address": upstream}}


@lab.command()
@DIRECTORY
@OUTPUT
def status(directory: Path, output: str) -> int:
    """Show every part: whether it runs and answers, its process and its address.

    Exit code 1 while a part does not answer, a link is cut or a disk is full.
    """
    found = open_laboratory(directory).status()
    rows: list[dict[str, object]] = [asdict(one) for one in found]
    if output == "human":
        rows = [
            {**row, "memory": size(one.resident_bytes), "up": f"{one.up_s:.0f} s"}
            for row, one in zip(rows, found, strict=True)
        ]
    show_rows(rows, ("part", "state", "pid", "address", "memory", "up", "note"), output)
    return 0 if all(one.is_well for one in found) else STOPPED_BADLY


@lab.command()
@click.argument("node")
@click.argument("image")
@DIRECTORY
@OUTPUT
def pull(node: str, image: str, directory: Path, output: str) -> None:
    """Pull IMAGE on NODE by containerd's CRI, as the kubelet does. Without a registry it is the virtual address's."""
    found = open_laboratory(directory)
    held = found.pull(found.topology.node(node), image)
    record = {"node": node, "image": full_name(image), "id": held}
    show_record(record, output, f"{node} holds {full_name(image)} as {held}")


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@DIRECTORY
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(directory: Path, node: str, command: tuple[str, ...]) -> None:
    """Run a command on a machine of the laboratory: NODE -- COMMAND …

    There the virtual address leads to the control planes, and the cluster's CA is trusted. `sluice node …` finds the
    machine's layout and secrets, and `sluice fsck`, `tags`, `gc` and `cache …` the configuration of its replica.
    """
    found = open_laboratory(directory)
    # After NODE click takes everything as it stands, also the -- that people put before a command.
    given = command[1:] if command[0] == "--" else command
    if not given:
        raise click.UsageError("the command is missing: NODE -- COMMAND …")
    machine = found.topology.machine(node)
    entered = found.ground.enter(given, machine)
    variables = {**environment(found.directory.path), **command_variables(found.topology, machine)}
    sys.stdout.flush()
    os.execvpe(entered[0], entered, variables)  # noqa: S606 - the user's own command


@lab.command()
@click.argument("part", required=False)
@click.option(
    "--lines",
    type=click.IntRange(min=1),
    default=LOG_LINES,
    show_default=True,
    help="How many lines of each, from the end.",
)
@DIRECTORY
def logs(part: str | None, lines: int, directory: Path) -> None:
    """Print what a part has said, or each of them."""
    place = LabDirectory(directory)
    topology = plan_topology(place.load().shape)
    for one in topology.parts if part is None else [topology.part(part)]:
        log = place.log(one.name)
        if part is None:
            click.echo(f"== {one.name} ({log})")
        said = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
        click.echo("".join(f"{line}\n" for line in said[-lines:]), nl=False)


@lab.command()
@click.option("--force", is_flag=True, help="Also from under another command, and where the state file is lost.")
@DIRECTORY
def down(force: bool, directory: Path) -> None:
    """Take it away: processes, namespaces, mounts and files, whatever state they are in."""
    require_root()
    place = LabDirectory(directory)
    if force:
        found = take_down(place)
    else:
        place.load()
        with place.locked():
            found = take_down(place)
    click.echo(f"the laboratory in {place.path} is gone" if found else f"nothing was in {place.path}", err=True)


@lab.command()
@click.argument("fault", type=click.Choice(list(FAULTS)))
@click.argument("target")
@DIRECTORY
@OUTPUT
def fault(fault: str, target: str, directory: Path, output: str) -> None:
    """Take TARGET away, or give it back (thaw, heal).

    \b
    kill, freeze, thaw   a part (cp-1/replica, worker-1/balancer, upstream) or a machine (cp-1: all of its parts)
    cut                  a machine's link: packets vanish in both directions
    fill-disk, corrupt   a replica's disk (cp-1): no room; a bit of its largest whole blob flipped
    heal                 a part, a machine, or all: started, thawed, linked, with room, and waited for
    """
    done = FAULTS[fault](open_laboratory(directory), target)
    show_record({"fault": fault, "target": target, "done": done}, output, done)


@lab.command()
@click.argument("layout", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tag", default="1", show_default=True, help="The image's name in the layout.")
@click.option(
    "--ballast-mib",
    type=click.IntRange(0, BALLAST_MIB_MAX),
    default=0,
    show_default=True,
    help="Size of one layer more, that nothing can compress.",
)
@OUTPUT
def image(layout: Path, tag: str, ballast_mib: int, output: str) -> None:
    """Write the laboratory's image, for two platforms, as an OCI layout into the new directory LAYOUT.

    To try a registry with where there is no other one: `skopeo copy --all oci:LAYOUT:TAG docker://…`. Needs busybox,
    and neither root nor a network.
    """
    try:
        name = parse_tag(tag)
    except NameInvalid as error:
        raise ConfigInvalid(f"--tag: {error.message}") from None
    digest = write_image(layout, name, [Ballast(ballast_mib << 20)] if ballast_mib else [])
    show_record({"layout": str(layout), "tag": tag, "digest": digest}, output, f"oci:{layout}:{tag}  {digest}")

"""``sluice pki``: the CAs of a cluster, what they have issued, and how one takes the place of another."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from sluice.cli.show import OUTPUT, show_record, show_rows, when
from sluice.errors import ConfigInvalid
from sluice.pki.cluster import VIRTUAL_HOST, ClusterPki, Held, Purpose
from sluice.pki.placing import place, refuse_foreign
from sluice.pki.rotation import Step, hindrances

KINDS = {purpose.removesuffix("s"): purpose for purpose in Purpose}
DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))
BEFORE = {
    Step.TRUST: "nothing has to be done first",
    Step.SIGN: "first let {bundle} reach everybody who verifies {purpose}",
    Step.RETIRE: "first issue everything anew and put it in its place",
}


@click.group()
def pki() -> None:
    """Keep the cluster's CAs: one each for servers, nodes, peers and operators."""


@pki.command()
@DIRECTORY
@OUTPUT
def init(directory: Path, output: str) -> None:
    """Make the CAs in DIRECTORY. What is there already stays as it is."""
    made = ClusterPki.create(directory, _now())
    bundles = {purpose.value: str(made.bundle_path(purpose)) for purpose in Purpose}
    text = "\n".join(f"{purpose}: {path}" for purpose, path in bundles.items())
    show_record({"directory": str(directory), "bundles": bundles}, output, text)


@pki.command()
@DIRECTORY
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("name")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="HOST",
    help="An IP address or host name of a server; can be repeated.",
)
@click.option(
    "--virtual-host",
    metavar="HOST",
    default=VIRTUAL_HOST,
    show_default=True,
    help="The name by which images call a server.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIRECTORY",
    help="Where tls.crt, tls.key and ca.crt (the servers' CA) are put, all at one instant.",
)
@OUTPUT
def issue(
    directory: Path, kind: str, name: str, addresses: tuple[str, ...], virtual_host: str, out: Path, output: str
) -> None:
    """Issue a certificate for NAME, or the next one. It counts as being in use from then on."""
    known, purpose, now = ClusterPki(directory), KINDS[kind], _now()
    refuse_foreign(out)
    if purpose is Purpose.SERVERS:
        if not addresses:
            raise ConfigInvalid("address is missing: give each address of the server with --address")
        issued = known.issue_server(name, addresses, now, virtual_host)
    elif addresses:
        raise ConfigInvalid(f"address is {addresses[0]!r}: a {kind} is known by its name; leave --address out")
    else:
        issued = known.issue_client(purpose, name, now)
    place(out, issued.certificate, issued.key, known.bundle(Purpose.SERVERS))
    known.delivered(purpose, name)
    ends, due = issued.not_after.timestamp(), issued.renew_at.timestamp()
    record = {"kind": purpose.value, "name": name, "out": str(out), "not_after": ends, "renew_at": due}
    show_record(record, output, f"{kind} {name}: {out}, until {when(ends)}, to be renewed from {when(due)} on")


@pki.command()
@DIRECTORY
@OUTPUT
def status(directory: Path, output: str) -> None:
    """List the CAs and the certificates that may be in use: whose, until when, and which are due for renewal."""
    rows = [_row(one) for one in ClusterPki(directory).held(_now())]
    if output == "human":
        rows = [
            {
                **row,
                "expires": when(float(str(row["not_after"]))),
                "renewal": "due" if row["due"] else when(float(str(row["renew_at"]))),
                "name": row["name"] or "(the CA)",
            }
            for row in rows
        ]
    show_rows(rows, ("kind", "name", "generation", "expires", "renewal"), output)


@pki.command()
@DIRECTORY
@click.argument("kind", type=click.Choice([purpose.value for purpose in Purpose]))
@click.option("--step", type=click.Choice([step.value for step in Step]), help="Take this step; again changes nothing.")
@click.option("--gone", multiple=True, metavar="NAME", help="Wait no more for this name; can be repeated.")
@OUTPUT
def rotate(directory: Path, kind: str, step: str | None, gone: tuple[str, ...], output: str) -> None:
    """Replace the CA of KIND in three steps: trust both, let the new one sign, retire the old one.

    Without --step it says where the rotation stands and what the next step waits for.
    """
    known, purpose, now = ClusterPki(directory), Purpose(kind), _now()
    for name in gone:
        known.forget(purpose, name)
    if step is not None:
        known.take(purpose, Step(step), now)
    rotation = known.rotation(purpose)
    behind = hindrances(rotation, rotation.next_step, known.evidence(purpose, now, {}, {}))
    bundle = known.bundle_path(purpose)
    todo = BEFORE[rotation.next_step].format(bundle=bundle, purpose=purpose)
    record = {
        "kind": kind,
        "stage": rotation.stage.value,
        "trusted": list(known.fingerprints(purpose)),
        "signer": rotation.signer,
        "next_step": rotation.next_step.value,
        "waits_for": list(behind),
        "bundle": str(bundle),
    }
    waits = f"; not replaced yet: {', '.join(behind)}" if behind else ""
    trusted = " and ".join(str(one) for one in rotation.trusted)
    text = (
        f"{kind}: {rotation.stage}, generation {trusted} trusted, {rotation.signer} signs\n"
        f"next step: {rotation.next_step} ({todo}{waits})"
    )
    show_record(record, output, text)


def _row(held: Held) -> dict[str, object]:
    return {
        "kind": held.purpose.value,
        "name": held.name,
        "generation": held.generation,
        "not_after": held.not_after.timestamp(),
        "renew_at": held.renew_at.timestamp(),
        "due": held.due,
    }


def _now() -> datetime:
    return datetime.now(UTC)

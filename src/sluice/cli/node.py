"""``sluice node``: what a node's container runtimes are told, and the agent that keeps it so."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from sluice.cli.show import OUTPUT, show_record, show_rows, when
from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets, Paths
from sluice.cluster.status import Finding
from sluice.errors import ConfigInvalid
from sluice.node.agent import Agent, Place
from sluice.node.apply import apply_intent, intend, interrupted, plan_intent, plan_undo, refuse, undo
from sluice.node.containerd import restart_containerd
from sluice.node.diff import render_diff, summarize
from sluice.node.drop_in import DROP_IN_NAME
from sluice.node.execute import Programs
from sluice.node.plan import Plan
from sluice.node.preflight import find_all
from sluice.node.prepare import intend_preparation, prepare
from sluice.node.programs import LeftPrograms, NodePrograms
from sluice.node.record import read_journal, read_layout, read_record, remembers
from sluice.node.status import current_status, describe

FAILED = 1
_RESTART = "has to restart once: systemctl restart containerd (containers run on)"
_NOT_HERE = (
    "nothing of Sluice is remembered in {}, and nothing was changed: "
    "where a layout has another paths.state, name the layout (--layout) or that directory (--state)"
)
_NO_LAYOUT = (
    "--layout: {} does not exist, and nothing was changed: it says where Sluice's memory is; "
    "name the layout that there is, or that directory (--state {})"
)
STATES = {True: "up", False: "DOWN", None: "unknown"}
LAYOUT = click.option(
    "--layout",
    "layout_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    envvar="SLUICE_NODE_LAYOUT",
    show_envvar=True,
    help="The node's layout, as YAML or JSON.",
)
SECRETS = click.option(
    "--secrets",
    "secrets_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="SLUICE_NODE_SECRETS",
    show_envvar=True,
    help="The node's certificate, key and the upstream's login.",
)
MAY_HAVE_LAYOUT = click.option(
    "--layout",
    "layout_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="SLUICE_NODE_LAYOUT",
    show_envvar=True,
    help="The node's layout, for its paths.state.",
)
STATE = click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help=f"Where Sluice remembers what it did, instead of a layout's paths.state.  [default: {Paths().state}]",
)
FORCE = click.option(
    "--force", is_flag=True, help="Replace foreign and edited files too; undo brings foreign ones back."
)


@click.group()
def node() -> None:
    """Tell this node's container runtimes where images come from, and take it back."""


@node.command("plan")
@LAYOUT
@SECRETS
@FORCE
@OUTPUT
def show_plan(layout_file: Path, secrets_file: Path | None, force: bool, output: str) -> int:
    """Print what apply would change, as a diff. Changes nothing; exit code 1 where apply would refuse.

    What keeps runtimes from taking it is said, too: those findings are nothing that apply changes or refuses.
    """
    layout, secrets = _documents(layout_file, secrets_file)
    intent = intend(layout, secrets, force=force)
    plan = plan_intent(intent)
    _tell_interrupted(intent.state)
    return _show(plan, output, find_all(layout, secrets, time.time()))


@node.command("apply")
@LAYOUT
@SECRETS
@FORCE
@OUTPUT
def apply_layout(layout_file: Path, secrets_file: Path | None, force: bool, output: str) -> None:
    """Do what plan prints: all of it or nothing.

    A foreign file in the way, or one of ours that was edited since, is refused with its remedy. What was there before
    is kept for undo. The balancer is started or reloaded where the layout wants one. What keeps runtimes from taking
    what was written is said, and apply is done all the same.
    """
    layout, secrets = _documents(layout_file, secrets_file)
    programs = NodePrograms(layout)
    plan = apply_intent(intend(layout, secrets, force=force), programs)
    programs.settle()
    if programs.ended_hung:
        click.echo("the balancer answered nothing: it was killed and started anew", err=True)
    findings = find_all(layout, secrets, time.time())
    show_record(_record(plan, findings), output, f"version {layout.version} is applied: {_counted(plan)}")
    _tell_findings(findings)


@node.command("undo")
@MAY_HAVE_LAYOUT
@STATE
@click.option("--force", is_flag=True, help="Take back edited files too; the edits are lost.")
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing.")
@OUTPUT
def take_back(layout_file: Path | None, state: Path | None, force: bool, dry_run: bool, output: str) -> int:
    """Restore exactly what was there before Sluice, and stop the balancer."""
    if layout_file is not None and state is None and not layout_file.exists():
        raise ConfigInvalid(_NO_LAYOUT.format(layout_file, Paths().state))
    place = _state(layout_file, state)
    if dry_run and remembers(place):
        return _show(plan_undo(place, force=force), output)
    if not remembers(place):
        plan = plan_undo(place) if dry_run else undo(place)
        show_record(_record(plan), output, _NOT_HERE.format(place))
        return 0
    restart = _prepared(place)
    plan = undo(place, _programs(place), force=force)
    done = f"everything is as it was before Sluice: {_counted(plan)}"
    show_record({**_record(plan), "restart": restart}, output, f"{done}; containerd {_RESTART}" if restart else done)
    return 0


@node.command("prepare")
@LAYOUT
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing.")
@click.option("--restart", is_flag=True, help="Restart containerd afterwards (systemctl restart containerd).")
@OUTPUT
def prepare_containerd(layout_file: Path, dry_run: bool, restart: bool, output: str) -> None:
    """Set containerd's config_path by a drop-in file, so that it reads what apply writes. Needed once.

    The diff is printed first, and containerd itself judges the outcome. It reads the file at its next start.
    """
    layout = load_document(NodeLayout, layout_file)
    intent = intend_preparation(layout)
    plan = plan_intent(intent)
    refuse(plan.refusals)
    click.echo(render_diff(plan), err=True, nl=False)
    if not plan.steps:
        show_record(_record(plan), output, "containerd is prepared already")
        return
    if dry_run:
        show_record(_record(plan), output, "nothing was changed; containerd would have to restart once")
        return
    prepare(layout, intent)
    if restart:
        restart_containerd()
    done = "containerd is prepared and was restarted"
    wait = f"containerd is prepared; it {_RESTART}"
    show_record({**_record(plan), "restarted": restart}, output, done if restart else wait)


@node.command("status")
@MAY_HAVE_LAYOUT
@STATE
@OUTPUT
def show_status(layout_file: Path | None, state: Path | None, output: str) -> int:
    """Print what this node is told and how it is: version, mode, health, findings, replicas and since when.

    Exit code 1 where its health is bad.
    """
    status = current_status(_state(layout_file, state), time.time())
    code = 0 if status.healthy else FAILED
    if output == "json":
        show_record(status.model_dump(mode="json"), output, "")
        return code
    for line in describe(status, time.time()):
        click.echo(line)
    if status.replicas:
        click.echo()
        rows = [
            {"replica": one.name, "address": one.address, "state": STATES[one.up]}
            | {"since": when(one.since), "why": one.reason}
            for one in status.replicas
        ]
        show_rows(rows, ("replica", "address", "state", "since", "why"), output)
    return code


@node.command("run")
@LAYOUT
@SECRETS
@STATE
def run_agent(layout_file: Path, secrets_file: Path | None, state: Path | None) -> None:
    """Follow the layout: apply each version, keep the balancer running, write down how things are.

    A layout that cannot be applied changes nothing; where it cannot be read, the last good one holds. SIGHUP looks at
    everything at once; SIGTERM ends the agent, and the balancer runs on.
    """
    agent = Agent(Place(layout_file, secrets_file, state), say=lambda line: click.echo(line, err=True))

    def noticed(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            agent.look_again()
        else:
            agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, noticed)
    agent.run()


def _documents(layout_file: Path, secrets_file: Path | None) -> tuple[NodeLayout, NodeSecrets | None]:
    layout = load_document(NodeLayout, layout_file)
    return layout, load_document(NodeSecrets, secrets_file) if secrets_file is not None else None


def _state(layout_file: Path | None, state: Path | None) -> Path:
    """Where Sluice's memory is. These commands are wanted most where a layout is not as it should be."""
    place = state or Path(Paths().state)
    if layout_file is not None:
        try:
            layout = load_document(NodeLayout, layout_file)
        except ConfigInvalid as error:
            click.echo(f"{error.message}; looking in {place}", err=True)
        else:
            place = state or Path(layout.paths.state)
    return place.absolute()


def _programs(state: Path) -> Programs:
    """Those of the layout that was applied; without it they can be stopped all the same."""
    try:
        layout = read_layout(state)
    except ConfigInvalid as error:
        click.echo(error.message, err=True)
        layout = None
    return LeftPrograms(state) if layout is None else NodePrograms(layout)


def _show(plan: Plan, output: str, findings: Sequence[Finding] = ()) -> int:
    show_record(_record(plan, findings), output, render_diff(plan).rstrip("\n") or "nothing to do")
    _tell_findings(findings)
    for refusal in plan.refusals:
        click.echo(f"refused: {refusal}", err=True)
    return FAILED if plan.refusals else 0


def _tell_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        click.echo(f"{'blocking' if finding.blocking else 'finding'}: {finding}", err=True)
    if any(finding.blocking for finding in findings):
        click.echo("images do not come from where the layout says until what is blocking is mended", err=True)


def _record(plan: Plan, findings: Sequence[Finding] = ()) -> dict[str, object]:
    return {
        "operations": [summarize(step) for step in plan.steps],
        "refusals": [{"path": one.path, "what": one.what, "remedy": one.remedy} for one in plan.refusals],
        "findings": [one.model_dump(mode="json") for one in findings],
        "diff": render_diff(plan),
    }


def _counted(plan: Plan) -> str:
    written = sum(step.do == "write" for step in plan.steps)
    removed = sum(step.do == "remove" for step in plan.steps)
    return f"{written} files written, {removed} removed" if written or removed else "nothing had to change"


def _prepared(state: Path) -> bool:
    """Whether containerd's drop-in is still to be taken back, be it by an undo that was interrupted."""
    journal = read_journal(state)
    begun = [step.path for step in journal.steps] if journal is not None else []
    return any(Path(path).name == DROP_IN_NAME for path in (*read_record(state).files, *begun))


def _tell_interrupted(state: Path) -> None:
    if interrupted(state):
        click.echo("an earlier apply was interrupted; the next one finishes or undoes it first", err=True)

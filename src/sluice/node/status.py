"""How a node is, for whoever asks: what the agent wrote down, and what the balancer says this moment.

Where no agent lives, nobody looks at the runtimes and the certificate but whoever asks, and nobody ends an apply that
broke off.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.cluster.status import Finding, NodeStatus, ReplicaStatus
from sluice.errors import ConfigInvalid
from sluice.node.apply import agent_lives, interrupted
from sluice.node.haproxy import Balancer
from sluice.node.haproxy_state import BalancerState
from sluice.node.preflight import find_all
from sluice.node.record import JOURNAL, STATE_BYTES_MAX, STATUS, read_layout, read_secrets
from sluice.pki.durable import read_bounded

SINCE_DRIFT_S = 2.5
"""HAProxy counts whole seconds since a change: a moment that moves by less than this is the same moment."""
QUIET_S = 150.0
"""Without a word from the agent for so long, its word is old."""


def current_status(state: Path, now: float) -> NodeStatus:
    """The agent's document with the balancer's present view. Raises ConfigInvalid where it is damaged."""
    written, layout = read_status(state), read_layout(state)
    status = written or NodeStatus(
        node=layout.node if layout is not None else None,
        mode=layout.mode if layout is not None else None,
        version=layout.version if layout is not None else None,
        healthy=False,
        since=now,
        error="nothing has been applied here yet" if layout is None else None,
        time=now,
    )
    if not agent_lives(state):
        if layout is not None:
            status = status.model_copy(update=_without_agent(status, layout, state, now))
        findings = (*_broken_off(state), *status.findings)
        status = status.model_copy(update={"agent": None, "findings": findings})
    if layout is None:
        return status
    balancer: bool | None = None
    replicas: tuple[ReplicaStatus, ...] = ()
    if "balancer" in layout.sources:
        seen = Balancer.of(layout).state()
        balancer, replicas = seen.running, describe_replicas(layout, seen, status.replicas, now)
    return judged(status.model_copy(update={"balancer": balancer, "replicas": replicas}), written, now)


def _without_agent(status: NodeStatus, layout: NodeLayout, state: Path, now: float) -> dict[str, object]:
    """What is looked at instead of it. Of a layout that was applied by hand since, its last word says nothing."""
    changes: dict[str, object] = {"node": layout.node, "mode": layout.mode, "version": layout.version}
    error = status.error
    if status.version != layout.version:
        error = changes["wanted"] = None
    secrets: NodeSecrets | None = None
    try:
        secrets = read_secrets(state)
    except ConfigInvalid as problem:
        error = "; ".join(filter(None, (error, problem.message)))
    return {**changes, "error": error, "findings": find_all(layout, secrets, now)}


def _broken_off(state: Path) -> Iterator[Finding]:
    if interrupted(state):
        remedy = "start the agent (sluice node run) or apply again (sluice node apply), which finishes or undoes it"
        yield Finding(what="is of an apply or undo that was interrupted", where=str(state / JOURNAL), remedy=remedy)


def judged(status: NodeStatus, before: NodeStatus | None, now: float) -> NodeStatus:
    """The same with ``healthy`` as all the rest of it says, and since when; ``before`` is what was known until now."""
    served = status.balancer is None or (status.balancer and any(one.up for one in status.replicas))
    blocked = any(one.blocking for one in status.findings)
    healthy = status.version is not None and status.error is None and served and not blocked
    lost = () if served else (one.since for one in status.replicas)
    since = before.since if before is not None and before.healthy == healthy else max(lost, default=now)
    return status.model_copy(update={"healthy": healthy, "since": since})


def read_status(state: Path) -> NodeStatus | None:
    """The agent's document; None where there is none. Its ``time`` is when the agent last said that it still holds."""
    raw = read_bounded(state / STATUS, STATE_BYTES_MAX)
    if raw is None:
        return None
    try:
        status = NodeStatus.model_validate_json(raw)
        return status.model_copy(update={"time": max(status.time, (state / STATUS).stat().st_mtime)})
    except FileNotFoundError:
        return None
    except ValidationError:
        raise ConfigInvalid(f"{state / STATUS} is damaged: remove it, the agent writes it anew") from None


def describe_replicas(
    layout: NodeLayout, seen: BalancerState, before: tuple[ReplicaStatus, ...], now: float
) -> tuple[ReplicaStatus, ...]:
    """What the balancer says about them; a time that was known before stays the same.

    Where it says nothing they are still named, and nothing is claimed about them but what was known last.
    """
    return _seen(seen, before) if seen.running else tuple(_unseen(layout, before, now))


def _unseen(layout: NodeLayout, before: tuple[ReplicaStatus, ...], now: float) -> Iterator[ReplicaStatus]:
    known = {(one.name, one.address): one for one in before}
    for replica in layout.replicas:
        last = known.get((replica.name, replica.authority))
        if last is not None and last.up is None:
            yield last
            continue
        was = "" if last is None else f"; it was {'up' if last.up else 'down'} before"
        reason = f"the balancer does not answer{was}"
        yield ReplicaStatus(name=replica.name, address=replica.authority, up=None, since=now, reason=reason)


def _seen(seen: BalancerState, before: tuple[ReplicaStatus, ...]) -> tuple[ReplicaStatus, ...]:
    known = {(one.name, one.address, one.up): one.since for one in before}
    found = []
    for one in seen.replicas:
        since = known.get((one.name, one.address, one.up), one.since)
        kept = since if abs(since - one.since) < SINCE_DRIFT_S else one.since
        found.append(ReplicaStatus(name=one.name, address=one.address, up=one.up, since=kept, reason=one.reason))
    return tuple(found)


def says_the_same(seen: BalancerState, before: BalancerState) -> bool:
    """Whether a status that was made of ``before`` would be the same one made of ``seen``."""
    same = (seen.pid, seen.running, len(seen.replicas)) == (before.pid, before.running, len(before.replicas))
    return same and all(
        (one.name, one.address, one.up, one.reason) == (other.name, other.address, other.up, other.reason)
        and abs(one.since - other.since) < SINCE_DRIFT_S
        for one, other in zip(seen.replicas, before.replicas, strict=True)
    )


def describe(status: NodeStatus, now: float) -> Iterator[str]:
    """Lines for people, the replicas left out."""
    yield f"node      {status.node or '-'}"
    yield f"mode      {status.mode or '-'}"
    wanted = f", {status.wanted} is wanted" if status.wanted not in {None, status.version} else ""
    yield f"version   {status.version or '-'}{wanted}"
    yield f"health    {'good' if status.healthy else 'BAD'}, for {_span(now - status.since)}"
    agent = "does not run" if status.agent is None else f"runs (PID {status.agent})"
    old = f", last heard of {_span(now - status.time)} ago" if now - status.time > QUIET_S else ""
    yield f"agent     {agent}{old}"
    if status.balancer is not None:
        yield f"balancer  {'runs' if status.balancer else 'DOES NOT ANSWER'}"
    if status.error is not None:
        yield f"error     {status.error}"
    for finding in status.findings:
        yield f"{'BLOCKING ' if finding.blocking else 'finding  '} {finding}"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"

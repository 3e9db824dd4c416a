"""How a node is, for whoever asks: what the agent wrote down, and what the balancer says this moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from sluice.cluster.layout import NodeLayout
from sluice.cluster.status import NodeStatus, ReplicaStatus
from sluice.errors import ConfigInvalid
from sluice.node.haproxy import Balancer
from sluice.node.haproxy_state import BalancerState
from sluice.node.record import STATE_BYTES_MAX, STATUS, read_layout
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
        error="no agent has written a status here yet" if layout is not None else "nothing has been applied here yet",
        time=now,
    )
    if status.agent is not None and not _lives(status.agent):
        status = status.model_copy(update={"agent": None})
    seen = _balancer(layout)
    if seen is None:
        return status
    replicas = describe_replicas(seen, status.replicas)
    return status.model_copy(update={"balancer": seen.running, "replicas": replicas})


def read_status(state: Path) -> NodeStatus | None:
    """The agent's document; None where there is none."""
    raw = read_bounded(state / STATUS, STATE_BYTES_MAX)
    try:
        return None if raw is None else NodeStatus.model_validate_json(raw)
    except ValidationError:
        raise ConfigInvalid(f"{state / STATUS} is damaged: remove it, the agent writes it anew") from None


def describe_replicas(seen: BalancerState, before: tuple[ReplicaStatus, ...]) -> tuple[ReplicaStatus, ...]:
    """What the balancer says about them; a time that was known before stays the same."""
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
        yield f"finding   {finding}"


def _balancer(layout: NodeLayout | None) -> BalancerState | None:
    if layout is None or "balancer" not in layout.sources:
        return None
    return Balancer.of(layout).state()


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"

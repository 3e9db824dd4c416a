"""What a node says about itself: the document that its agent writes, and that commands and the controller read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sluice.cluster.layout import Mode
from sluice.config.section import Section


class Finding(Section):
    """Something on a node that is not as it should be: ``where`` is ``what``, and ``remedy`` is the way on.

    ``blocking``: while it is so, images do not come from where the layout says.
    """

    what: str
    where: str
    remedy: str
    blocking: bool = False

    def __str__(self) -> str:
        return f"{self.where} {self.what}: {self.remedy}"


class ReplicaStatus(Section):
    """A replica as the node's balancer sees it; ``since`` in seconds of the epoch, ``reason`` for people.

    ``up`` is None while the balancer does not answer, and nobody knows; ``reason`` has what was known last.
    """

    name: str
    address: str
    up: bool | None
    since: float
    reason: str = ""


class NodeStatus(Section):
    """``version`` is the layout that is applied, None before the first; ``wanted`` the one that was asked for last,
    where the agent could read it. ``error``: why the two differ. ``balancer``: whether it answers, None where the
    layout has none. ``since`` (of ``healthy``) in seconds of the epoch, and ``time``: in the agent's file, of its
    writing; as ``read_status`` and ``sluice node status`` have it, of the agent's last sign of life, for which it
    touches the file once a minute as long as all of it holds."""

    node: str | None = None
    mode: Mode | None = None
    version: int | None = None
    wanted: int | None = None
    healthy: bool
    since: float
    error: str | None = None
    findings: tuple[Finding, ...] = ()
    balancer: bool | None = None
    replicas: tuple[ReplicaStatus, ...] = ()
    agent: Annotated[int | None, Field(description="PID of the agent")] = None
    time: float

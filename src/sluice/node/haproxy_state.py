"""What HAProxy says about itself and the replicas, read from its socket's answers. PURE.

``haproxy`` asks; ``sluice node status`` and the laboratory show it. Formats: HAProxy 2.6 management guide, sections 9.1
("CSV format") and 9.3 ("show info", "show stat").
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sluice.node.balancer import BACKEND

_TAKEN = re.compile(r"Address already in use\)? for \[[^\]]*:(\d+)\]")
_ROWS_OF_NO_SERVER = frozenset({"FRONTEND", "BACKEND"})
_SAID_OF_ITSELF = ("Pid:", "Start_time_sec:", "description:")
_NAME, _STATUS, _TIMES_DOWN, _CHECK_STATUS = 1, 17, 22, 36
"""Columns of "show stat", all of them before the first that may have a comma in it."""
_RUNNING = "* "  # before the status of the last check while another one runs; check_code is 0 then


Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica as this node's balancer sees it.

    ``name`` and ``address`` are the layout's. ``since`` is when it became so, in seconds since the epoch. ``reason`` is
    what the last check found, in a sentence for people. ``streams`` are the requests that it answers now, ``sent`` the
    bytes that have come from it since the balancer was started or reloaded.
    """

    name: str
    address: str
    up: bool
    since: float
    reason: str
    streams: int
    sent: int


@dataclass(frozen=True, slots=True)
class BalancerState:
    """The balancer of a node. ``config``: digest of the configuration that it runs on, None while it does not run.
    ``fingerprint`` is that of the answer which all this was read from."""

    pid: int | None
    config: str | None
    replicas: tuple[ReplicaState, ...] = ()
    fingerprint: Fingerprint = field(default=(), compare=False)

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self.config is not None


def fingerprint(answer: str) -> Fingerprint:
    """What stays the same in an answer to "show info; show stat" as long as nothing but counts and times changes: which
    process says it, on what configuration, and how each server is and how often it has been down.

    For an agent that has nothing to do: a small part of what reading the answer costs.
    """
    info, _, stat = answer.partition("\n\n")
    rows = (row.split(",", _CHECK_STATUS + 1) for row in stat.splitlines())
    return (
        *(line for line in info.splitlines() if line.startswith(_SAID_OF_ITSELF)),
        *(
            (row[_NAME], row[_STATUS], row[_TIMES_DOWN], row[_CHECK_STATUS].removeprefix(_RUNNING))
            for row in rows
            if len(row) > _CHECK_STATUS
        ),
    )


def parse_info(text: str) -> dict[str, str]:
    """``show info``: its fields by name."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, mark, value in pairs if mark}


def parse_replicas(text: str, now: float) -> tuple[ReplicaState, ...]:
    """``show stat``: the replicas. ``now`` in seconds since the epoch. Raises ValueError for any other text."""
    rows = csv.DictReader(text.removeprefix("# ").splitlines())
    if not {"pxname", "svname", "status", "lastchg", "addr"} <= set(rows.fieldnames or ()):
        raise ValueError("is no answer of HAProxy to 'show stat'")
    return tuple(_replica(row, now) for row in _servers(rows))


def _servers(rows: Iterable[dict[str, str]]) -> Iterable[dict[str, str]]:
    return (row for row in rows if row["pxname"] == BACKEND and row["svname"] not in _ROWS_OF_NO_SERVER)


def _replica(row: dict[str, str], now: float) -> ReplicaState:
    found = (row.get("last_chk") or "").strip()
    what = (row.get("check_desc") or row.get("check_status") or "not checked yet").strip()
    return ReplicaState(
        name=row["svname"].partition("_")[0],
        address=row["addr"],
        up=row["status"].startswith("UP"),  # "UP 1/2" is one that has failed a check and still takes requests
        since=now - int(row["lastchg"] or 0),
        reason=f"{what}: {found}" if found else what,
        streams=int(row["scur"] or 0),
        sent=int(row["bout"] or 0),
    )


def port_remedy(said: str) -> str:
    """What to do about a complaint, after a colon, where it is about ports that others have; else nothing."""
    ports = sorted(set(_TAKEN.findall(said)), key=int)
    if not ports:
        return ""
    named = " and ".join(f"port {port}" for port in ports)
    return (
        f": another program listens on {named}: stop it (ss -ltnp shows which it is), "
        "or give the balancer another port in the layout (balancer.port, balancer.metrics_port)"
    )

"""Replacing a CA of a laboratory while it runs: each step goes to every machine and is waited for before the next.

The order is that of ``pki.rotation``: trust both, sign with the new one, trust the new one alone. What this adds is to
bring it to replicas and nodes the way that they take changes, and to see with a client's eyes that it has arrived.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from sluice.cluster.documents import load_document
from sluice.cluster.layout import REPLICA_PORT, NodeLayout
from sluice.errors import Unavailable
from sluice.lab.credentials import (
    LAYOUT_NAME,
    SERVERS_CA_NAME,
    TLS_FOLDER,
    cluster_pki,
    hand_to_node,
    hand_to_replica,
)
from sluice.lab.laboratory import VIRTUAL, Laboratory
from sluice.lab.mounts import trust_script
from sluice.lab.parts import ANSWER_S, applied_version, fetch, unverified
from sluice.lab.provision import read_login
from sluice.lab.topology import OPERATIONS_PORT, PUBLIC_PORT, Machine
from sluice.pki.cluster import ClusterPki, Purpose
from sluice.pki.placing import CERTIFICATE
from sluice.pki.rotation import Step

ARRIVED_S = 60.0
"""How long a step may take to be in force on one machine, in seconds."""
POLL_S = 0.1
_NODES_CA = re.compile(r'sluice_door_authority_not_after_seconds\{authority="nodes:([0-9a-f]{64})"\}')


def rotate(lab: Laboratory, purpose: Purpose, say: Callable[[str], None]) -> None:
    """Replace the CA of servers or of nodes. Raises RotationUnsafe, Unavailable, ConfigInvalid."""
    pki = cluster_pki(lab.directory, datetime.now(UTC))
    holders = lab.topology.control_planes if purpose is Purpose.SERVERS else lab.topology.nodes
    for step in (Step.TRUST, Step.SIGN, Step.RETIRE):
        pki.take(purpose, step, datetime.now(UTC))
        deliver(lab, pki)
        for machine in holders:
            pki.delivered(purpose, machine.name)
        say(f"{purpose}: {step} is in force everywhere")


def deliver(lab: Laboratory, pki: ClusterPki) -> None:
    """Bring every machine what it should have now, and return when all of it is in force. Raises Unavailable."""
    now = datetime.now(UTC)
    for machine in lab.topology.control_planes:
        hand_to_replica(lab.directory, machine, pki, now)
    for node in lab.topology.nodes:
        home = lab.directory.machine(node)
        layout = load_document(NodeLayout, home / LAYOUT_NAME)
        renewed = layout.model_copy(update={"version": layout.version + 1, "authorities": pki.bundle(Purpose.SERVERS)})
        hand_to_node(home, pki, renewed, read_login(lab.directory, lab.topology), now)
        _tell_components(lab, node)
    for machine in lab.topology.control_planes:
        _await(partial(_replica_has_it, lab, machine, pki), f"{machine.name}/replica")
    for node in lab.topology.nodes:
        _await(partial(_node_has_it, lab, node), f"{node.name}/agent")


def _tell_components(lab: Laboratory, node: Machine) -> None:
    lab.run(node, ["sh", "-euc", trust_script(node, VIRTUAL, f"{node.home}/{SERVERS_CA_NAME}")])


def _replica_has_it(lab: Laboratory, machine: Machine, pki: ClusterPki) -> bool:
    _, metrics = fetch(lab.ground, machine, ("127.0.0.1", OPERATIONS_PORT), "/metrics")
    trusted = set(_NODES_CA.findall(metrics.decode()))
    placed = (lab.directory.machine(machine) / TLS_FOLDER / CERTIFICATE).read_text(encoding="ascii")
    shown = ssl.PEM_cert_to_DER_cert(placed.partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
    return trusted == set(pki.fingerprints(Purpose.NODES)) and all(
        shown == _shown(lab, machine, port) for port in (PUBLIC_PORT, REPLICA_PORT)
    )


def _shown(lab: Laboratory, machine: Machine, port: int) -> bytes | None:
    """The certificate that a server shows; a door ends the connection only after that."""
    plain = lab.ground.connect(machine, (machine.address, port), ANSWER_S)
    with plain, unverified().wrap_socket(plain) as tls:
        return tls.getpeercert(binary_form=True)


def _node_has_it(lab: Laboratory, node: Machine) -> bool:
    layout = load_document(NodeLayout, lab.directory.machine(node) / LAYOUT_NAME)
    return applied_version(lab.ground, node) == layout.version


def _await(arrived: Callable[[], bool], who: str) -> None:
    deadline = time.monotonic() + ARRIVED_S
    while time.monotonic() < deadline:
        try:
            if arrived():
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(POLL_S)
    raise Unavailable(f"{who} has not taken the new certificates within {ARRIVED_S:g} s: see its log")

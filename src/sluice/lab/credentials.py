"""Certificates for a laboratory's machines: who gets what from the cluster's authorities, and where it is put.

``provision`` hands everything out once; ``rotation`` does it again while the laboratory runs. A replica's certificate,
key and the CA of those whom it lets in are exchanged at one instant (``pki.placing``); a node's are in its layout and
its secrets, which its agent follows.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sluice.cluster.documents import dump_document, load_document
from sluice.cluster.layout import Login, NodeLayout, NodeSecrets
from sluice.lab.state import LabDirectory
from sluice.lab.topology import Machine
from sluice.pki.cluster import ClusterPki, Purpose
from sluice.pki.durable import PUBLIC_MODE, write_durably
from sluice.pki.placing import CERTIFICATE, KEY, place

LAYOUT_NAME, SECRETS_NAME = "layout.json", "secrets.json"
TLS_FOLDER, SERVERS_CA_NAME = "tls", "servers-ca.crt"


def cluster_pki(directory: LabDirectory, now: datetime) -> ClusterPki:
    """The cluster's authorities, made where they are missing. ``now`` is UTC and aware, here and below."""
    return ClusterPki.create(directory.pki / "cluster", now)


def servers_ca(directory: LabDirectory) -> Path:
    """The file with what vouches for replicas now."""
    return ClusterPki(directory.pki / "cluster").bundle_path(Purpose.SERVERS)


def tls_files(machine: Machine) -> dict[str, str]:
    """A server's certificate and key, by the names that its configuration has for them."""
    return {"certificate": f"{machine.home}/{TLS_FOLDER}/{CERTIFICATE}", "key": f"{machine.home}/{TLS_FOLDER}/{KEY}"}


def hand_to_replica(directory: LabDirectory, machine: Machine, pki: ClusterPki, now: datetime) -> None:
    """Its certificate, a new one if that is due, and the CA of the nodes."""
    folder = directory.machine(machine) / TLS_FOLDER
    held = folder / CERTIFICATE
    if held.exists() and not pki.is_due(Purpose.SERVERS, held.read_text(encoding="ascii"), now):
        certificate, key = held.read_text(encoding="ascii"), (folder / KEY).read_text(encoding="ascii")
    else:
        issued = pki.issue_server(machine.name, (machine.address, machine.name), now)
        certificate, key = issued.certificate, issued.key
    place(folder, certificate, key, pki.bundle(Purpose.NODES))


def hand_to_node(home: Path, pki: ClusterPki, layout: NodeLayout, login: Login | None, now: datetime) -> None:
    """Its layout, with the CA of the servers, and its secrets, with a new certificate if that is due."""
    held = load_document(NodeSecrets, home / SECRETS_NAME) if (home / SECRETS_NAME).exists() else None
    if held is None or pki.is_due(Purpose.NODES, held.certificate, now):
        issued = pki.issue_client(Purpose.NODES, layout.node, now)
        held = NodeSecrets(certificate=issued.certificate, key=issued.key, upstream=login)
        write_durably(home / SECRETS_NAME, dump_document(held))
    write_durably(home / SERVERS_CA_NAME, pki.bundle(Purpose.SERVERS).encode(), mode=PUBLIC_MODE)
    write_durably(home / LAYOUT_NAME, dump_document(layout))

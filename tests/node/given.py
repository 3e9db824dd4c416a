"""Layouts and secrets for suites that need some, with real certificates; made once for a whole run."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sluice.cluster.layout import Login, NodeLayout, NodeSecrets, Paths
from sluice.pki.authority import certificate_pem, open_authority
from sluice.pki.leaf import issue_client

LOGIN = Login(user="reader", password="s3cret $(x) \"'")


@cache
def authority(name: str = "sluice test") -> tuple[str, str, str]:
    """An authority's certificate, and a client's certificate and key from it; all PEM."""
    now = datetime.now(UTC)
    with TemporaryDirectory() as directory:
        made = open_authority(Path(directory), "ca", name, now)
        leaf = issue_client(made, "worker-1", now)
        return certificate_pem(made.certificate).decode(), leaf.chain_pem.decode(), leaf.key_pem.decode()


def node_secrets(name: str = "sluice test", *, login: bool = False) -> NodeSecrets:
    """A node's secrets; another ``name`` gives another certificate."""
    _, certificate, key = authority(name)
    return NodeSecrets(certificate=certificate, key=key, upstream=LOGIN if login else None)


def paths_below(root: Path) -> Paths:
    """The default paths, all moved below ``root``."""
    return Paths(**{key: f"{root}{value}" for key, value in Paths().model_dump().items()})


def node_layout(**changes: object) -> NodeLayout:
    """A worker in Proxy mode before two replicas, with two mirrored registries; ``changes`` replace members."""
    values: dict[str, object] = {
        "version": 1,
        "node": "worker-1",
        "mode": "proxy",
        "sources": ("balancer", "replicas"),
        "registries": ({"name": "docker.io"}, {"name": "quay.io"}),
        "replicas": ({"name": "master-1", "host": "10.0.0.11"}, {"name": "master-2", "host": "10.0.0.12"}),
        "authorities": authority()[0],
    }
    return NodeLayout.model_validate(values | changes)

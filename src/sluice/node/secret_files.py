"""The files that hold a node's secrets: client certificate and key, and the upstream's login. PURE.

``hosts`` and ``balancer`` name the client files, ``credential_provider`` reads the login, ``desired`` writes them all.
Certificate and key are two files for containerd and one for HAProxy, and a pair that is replaced name by name would be
mismatched for an instant; so their names are made from their content, and a rotation writes new files beside the old.
"""

from __future__ import annotations

import hashlib
import json

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.files import PRIVATE_MODE, Files, FileSpec

NAME_DIGITS = 16  # hexadecimal digits of SHA-256 in a client file's name
UPSTREAM_NAME = "upstream.json"


def asks_replicas(layout: NodeLayout) -> bool:
    """Whether this node speaks to replicas, by its balancer or itself, and so has to show a certificate."""
    return bool({"balancer", "replicas"} & set(layout.sources))


def client_paths(layout: NodeLayout, secrets: NodeSecrets) -> tuple[str, str]:
    """Where the certificate and its key are, for containerd's ``client`` (two files)."""
    stem = _client_stem(layout, secrets)
    return f"{stem}.crt", f"{stem}.key"


def client_pem_path(layout: NodeLayout, secrets: NodeSecrets) -> str:
    """Where certificate and key are in one file, for HAProxy's ``crt``."""
    return f"{_client_stem(layout, secrets)}.pem"


def upstream_path(layout: NodeLayout) -> str:
    """Where ``sluice-credential-provider`` finds the upstream's login."""
    return f"{layout.paths.secrets}/{UPSTREAM_NAME}"


def render_secrets(layout: NodeLayout, secrets: NodeSecrets | None) -> Files:
    """All of them, for root alone. Raises ConfigInvalid where replicas are asked and there is no certificate."""
    files: dict[str, FileSpec] = {}
    if secrets is None:
        if asks_replicas(layout):
            raise ConfigInvalid(
                f"node {layout.node} asks replicas, which want its certificate, and there are no secrets: "
                "name the file with certificate and key"
            )
        return files
    if asks_replicas(layout):
        certificate, key = client_paths(layout, secrets)
        files[certificate] = _secret(secrets.certificate)
        files[key] = _secret(secrets.key)
        files[client_pem_path(layout, secrets)] = _secret(secrets.certificate + secrets.key)
    if secrets.upstream is not None and "upstream" in layout.sources:
        files[upstream_path(layout)] = _secret(_login(layout, secrets))
    return files


def _client_stem(layout: NodeLayout, secrets: NodeSecrets) -> str:
    digest = hashlib.sha256((secrets.certificate + secrets.key).encode()).hexdigest()
    return f"{layout.paths.secrets}/{digest[:NAME_DIGITS]}"


def _login(layout: NodeLayout, secrets: NodeSecrets) -> str:
    assert secrets.upstream is not None
    login = {"virtual": layout.virtual, "user": secrets.upstream.user, "password": secrets.upstream.password}
    return json.dumps(login) + "\n"


def _secret(text: str) -> FileSpec:
    return FileSpec(text.encode(), PRIVATE_MODE, early=True)

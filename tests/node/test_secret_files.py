"""What is written of a node's secrets, and under which names."""

from __future__ import annotations

import json

import pytest

from node.given import LOGIN, authority, node_layout, node_secrets
from sluice.cluster.layout import NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.files import FileSpec
from sluice.node.secret_files import client_paths, client_pem_path, render_secrets, upstream_path

DIRECT = {
    "mode": "direct",
    "sources": ("upstream", "replicas"),
    "upstream": {"address": "https://registry.example.com/prefix"},
}


def test_a_client_is_three_private_files_written_first() -> None:
    """Containerd gets certificate and key, HAProxy both in one; all for root alone and before what names them."""
    layout, secrets = node_layout(), node_secrets()
    certificate, key = client_paths(layout, secrets)
    assert render_secrets(layout, secrets) == {
        certificate: FileSpec(secrets.certificate.encode(), 0o600, early=True),
        key: FileSpec(secrets.key.encode(), 0o600, early=True),
        client_pem_path(layout, secrets): FileSpec((secrets.certificate + secrets.key).encode(), 0o600, early=True),
    }


def test_another_certificate_takes_other_names() -> None:
    """A rotation replaces no file, so that no reader sees a certificate with another's key."""
    layout = node_layout()
    assert not set(render_secrets(layout, node_secrets())) & set(render_secrets(layout, node_secrets("another")))


def test_the_login_is_written_where_the_upstream_is_asked() -> None:
    """Direct mode's credential provider finds virtual address, user and password; other modes leave nothing behind."""
    secrets = node_secrets(login=True)
    direct = node_layout(**DIRECT)
    spec = render_secrets(direct, secrets)[upstream_path(direct)]
    login = {"virtual": direct.virtual, "user": LOGIN.user, "password": LOGIN.password}
    assert (login, 0o600, True) == (json.loads(spec.content), spec.mode, spec.early)
    assert upstream_path(direct) not in render_secrets(node_layout(), secrets)


def test_replicas_want_a_certificate() -> None:
    """Without secrets, a layout whose sources need them is refused; one that needs none renders nothing."""
    with pytest.raises(ConfigInvalid, match="worker-1 asks replicas, which want its certificate"):
        render_secrets(node_layout(), None)
    unmanaged = node_layout(mode="unmanaged", sources=())
    assert {} == render_secrets(unmanaged, None) == render_secrets(unmanaged, node_secrets(login=True))


def test_a_certificate_with_another_key_is_refused() -> None:
    """The producer refuses what every replica would; the key is not shown."""
    with pytest.raises(ValueError, match="is not the key of the first certificate"):
        NodeSecrets(certificate=authority()[1], key=authority("another")[2])

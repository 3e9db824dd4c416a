"""How long will replicas take what this node shows them? A finding when its certificate is due, or over. PURE.

Beside ``preflight``, for what ages where nobody looks: the day on which it is over, the node gets no image any more.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.cluster.status import Finding
from sluice.node.secret_files import asks_replicas, client_paths
from sluice.pki.leaf import renew_at


def check_certificate(layout: NodeLayout, secrets: NodeSecrets | None, now: float) -> tuple[Finding, ...]:
    """None where it need not be renewed yet, as ``sluice pki`` counts it, or where none is shown to anybody."""
    if secrets is None or not asks_replicas(layout):
        return ()
    leaf = x509.load_pem_x509_certificates(secrets.certificate.encode())[0]
    moment, end = datetime.fromtimestamp(now, UTC), leaf.not_valid_after_utc
    if moment < renew_at(leaf):
        return ()
    over = moment >= end
    until = end.strftime("%Y-%m-%d %H:%M:%SZ")
    what = f"ended on {until}: no replica takes it any more" if over else f"ends on {until}"
    return (
        Finding(
            what=f"is this node's certificate and {what}",
            where=client_paths(layout, secrets)[0],
            remedy=f"issue another (sluice pki issue DIRECTORY node {layout.node}) and put it into the node's secrets",
            blocking=over,
        ),
    )

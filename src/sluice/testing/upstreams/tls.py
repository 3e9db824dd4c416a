"""Certificates for upstreams: an authority and a leaf of our own making, so that a test can trust it, or another."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sluice.pki.material import ensure_server_certificate

NAMES = ("localhost", "127.0.0.1", "127.0.0.2")


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """``ca`` is the file that clients trust, ``context`` what the server uses."""

    ca: Path
    context: ssl.SSLContext

    def client_context(self) -> ssl.SSLContext:
        """A client's that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.ca))


def make_tls(directory: Path, names: Sequence[str] = NAMES, client_ca: Path | None = None) -> UpstreamTls:
    """Make an authority in ``directory`` (or use the one there) and a certificate for ``names``.

    With ``client_ca`` only clients with a certificate of that authority get in.
    """
    made = ensure_server_certificate(directory, names, datetime.now(UTC))
    assert made.ca is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return UpstreamTls(made.ca, context)

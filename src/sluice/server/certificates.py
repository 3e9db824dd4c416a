"""The server's certificate over its life: made or given, watched, renewed.

Granian reads its PEM files by path when a listener starts, and ends the process over a bad one. So what is served are
copies of files that have been validated, under names of their own in ``<data>/tls/serving``.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sluice.config import RegistryConfig, split_address
from sluice.errors import ConfigInvalid
from sluice.pki.durable import PUBLIC_MODE, make_directory, write_durably
from sluice.pki.leaf import server_names
from sluice.pki.material import ensure_server_certificate, load_given, read_authorities
from sluice.server.listen import Tls


class Certificates:
    """Yields the ``Tls`` to serve with; ``refresh`` says when there is a new one."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._directory = config.data / "tls"
        self.ca: Path | None = None
        self.current: Tls | None = None
        self.not_after: datetime | None = None

    def refresh(self) -> bool:
        """Make or read the certificate; True where it differs from the current one. Raises ConfigInvalid."""
        if self._config.insecure_http:
            return False
        given = self._config.tls
        if given.certificate is not None and given.key is not None:
            material = load_given(given.certificate, given.key, datetime.now(UTC))
        else:
            material = ensure_server_certificate(self._directory, self._names(), datetime.now(UTC))
        self.ca = material.ca
        self.not_after = material.not_after
        serving = self._serving(material.certificate.read_bytes(), material.key.read_bytes())
        changed = serving != self.current
        self.current = serving
        return changed

    def expiry_s(self) -> float:
        """When the certificate ends, in seconds since the epoch; 0 without one."""
        return self.not_after.timestamp() if self.not_after else 0.0

    def for_clients(self) -> Tls:
        """The same for the listener that demands client certificates; raises ConfigInvalid (``client_ca``)."""
        if self.current is None or self._config.client_ca is None:
            raise ConfigInvalid("client_listen needs TLS: remove insecure_http or client_listen")
        authorities = read_authorities(self._config.client_ca)
        path = self._directory / "serving" / "clients.pem"
        write_durably(path, authorities, mode=PUBLIC_MODE)
        return replace(self.current, client_ca=path)

    def _names(self) -> Sequence[str]:
        config = self._config
        extra = list(config.tls.names)
        if config.client_listen is not None:
            extra.append(split_address(config.client_listen)[0])
        return server_names(split_address(config.listen)[0], socket.gethostname(), extra)

    def _serving(self, certificate: bytes, key: bytes) -> Tls:
        directory = self._directory / "serving"
        make_directory(directory)
        name = hashlib.sha256(certificate + key).hexdigest()[:16]
        tls = Tls(directory / f"{name}.crt", directory / f"{name}.key")
        write_durably(tls.key, key)
        write_durably(tls.certificate, certificate, mode=PUBLIC_MODE)
        load_given(tls.certificate, tls.key, datetime.now(UTC))  # the copies: the originals may have changed since
        for stale in directory.iterdir():
            if stale.stem not in {name, "clients"}:
                os.unlink(stale)
        return tls

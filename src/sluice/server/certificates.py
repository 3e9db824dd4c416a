"""What the listeners show and whom they let in: made or given, watched, renewed.

Granian reads its PEM files by path when a listener starts, and ends the process over a bad one. So what is served are
copies of files that have been validated, under names made from their content, in ``<data>/tls/serving``. A file that
has changed is taken on its own: a mistake in one leaves that one as it was and holds up no other.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sluice.config import DoorConfig, RegistryConfig, split_address
from sluice.errors import ConfigInvalid, SluiceError
from sluice.pki.durable import PUBLIC_MODE, make_directory, write_durably
from sluice.pki.leaf import server_names
from sluice.pki.material import TrustedAuthorities, ensure_server_certificate, load_given, read_authorities
from sluice.server.listen import Tls
from sluice.server.reload import Signature, signature


class Certificates:
    """Yields the ``Tls`` that each listener is to serve with; ``refresh`` reads everything anew."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._directory = config.data / "tls"
        self.ca: Path | None = None
        self.not_after: datetime | None = None
        self._own: Tls | None = None
        self._admitted: dict[str, Path] = {}
        self._trusted: dict[str, TrustedAuthorities] = {}

    def tls(self, door: str | None = None) -> Tls | None:
        """For the registry's own listener, or for the door of that section. After ``refresh``."""
        return self._own if door is None or self._own is None else replace(self._own, client_ca=self._admitted[door])

    def signature(self) -> Sequence[Signature]:
        """What changes when a given file does."""
        given = [self._config.tls.certificate, self._config.tls.key]
        return [signature(path) for path in (*given, *(door.ca for door in self._config.doors.values()))]

    def refresh(self) -> list[SluiceError | OSError]:
        """Make or read everything; what can be used is in force afterwards. Returns what cannot, and why not."""
        if self._config.insecure_http:
            return []
        doors = self._config.doors.items()
        problems: list[SluiceError | OSError] = []
        steps: list[Callable[[], None]] = [partial(self._refresh_door, name, door) for name, door in doors]
        for step in (self._refresh_own, *steps):
            try:
                step()
            except (SluiceError, OSError) as error:
                problems.append(error)
        if not problems:
            self._tidy()
        return problems

    def expiry_s(self) -> float:
        """When the certificate ends, in seconds since the epoch; 0 without one."""
        return self.not_after.timestamp() if self.not_after else 0.0

    def authorities(self) -> Mapping[str, float]:
        """When each CA that a door trusts ends, in seconds since the epoch, by ``<door>:<its SHA-256>``."""
        ends = {name: trusted.ends.items() for name, trusted in self._trusted.items()}
        return {f"{name}:{found}": end.timestamp() for name, items in ends.items() for found, end in items}

    def _refresh_own(self) -> None:
        given = self._config.tls
        if given.certificate is not None and given.key is not None:
            material = load_given(given.certificate, given.key, datetime.now(UTC))
        else:
            material = ensure_server_certificate(self._directory, self._names(), datetime.now(UTC))
        self._own = self._serving(material.certificate.read_bytes(), material.key.read_bytes())
        self.ca = material.ca
        self.not_after = material.not_after

    def _refresh_door(self, name: str, door: DoorConfig) -> None:
        assert door.ca is not None
        found = read_authorities(f"{name}.ca", door.ca, datetime.now(UTC))
        for other, trusted in self._trusted.items():
            if other != name and not trusted.keys.isdisjoint(found.keys):
                raise ConfigInvalid(
                    f"{name}.ca {door.ca} has a CA that {other}.ca has too, so that each one's certificates would open"
                    " both doors; give each door a CA of its own"
                )
        path = self._directory / "serving" / f"{name}-{_name_of(found.pem)}.crt"
        make_directory(path.parent)
        write_durably(path, found.pem, mode=PUBLIC_MODE)
        self._admitted[name], self._trusted[name] = path, found

    def _names(self) -> Sequence[str]:
        config = self._config
        doors = [split_address(door.listen)[0] for door in config.doors.values() if door.listen is not None]
        return server_names(split_address(config.listen)[0], (socket.gethostname(), *doors), config.tls.names)

    def _serving(self, certificate: bytes, key: bytes) -> Tls:
        directory = self._directory / "serving"
        make_directory(directory)
        name = _name_of(certificate + key)
        tls = Tls(directory / f"{name}.crt", directory / f"{name}.key")
        write_durably(tls.key, key)
        write_durably(tls.certificate, certificate, mode=PUBLIC_MODE)
        load_given(tls.certificate, tls.key, datetime.now(UTC))  # the copies: the originals may have changed since
        return tls

    def _tidy(self) -> None:
        own = () if self._own is None else (self._own.certificate, self._own.key)
        for found in (self._directory / "serving").iterdir():
            if found not in {*own, *self._admitted.values()}:
                os.unlink(found)


def _name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

"""The files that TLS with an upstream needs, read and checked at start: whom we trust, and who we are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from sluice.config.reading import read_named
from sluice.errors import ConfigInvalid
from sluice.upstream.settings import UpstreamSettings

PEM_BYTES_MAX = 1 << 20
"""Bytes of a certificate or key file; a bundle of all public authorities has a fifth of it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """``ca_pem`` is trusted beside the system's roots. ``identity_pem`` is the client's chain and key."""

    ca_pem: bytes | None
    identity_pem: bytes | None = field(repr=False)


def load_trust(settings: UpstreamSettings) -> Trust:
    """Read and check the files; raises ConfigInvalid naming the setting, the file and the remedy."""
    certificate, key = settings.client_certificate, settings.client_key
    if (certificate is None) != (key is None):
        raise ConfigInvalid(
            f"upstream {settings.name} has a client certificate or a client key without the other: give both"
        )
    ca_pem = None if settings.ca is None else _certificates(f"{settings.key}.ca", settings.ca)
    if certificate is None or key is None:
        return Trust(ca_pem, None)
    chain = _certificates(f"{settings.key}.client_certificate", certificate)
    secret = _key(f"{settings.key}.client_key", key)
    if x509.load_pem_x509_certificates(chain)[0].public_key() != secret.public_key():
        raise ConfigInvalid(
            f"{settings.key}.client_key is {key}, which does not belong to the certificate {certificate}: give the two"
            " that were issued together"
        )
    pkcs8 = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Trust(ca_pem, chain + b"\n" + pkcs8)


def _certificates(field: str, path: Path) -> bytes:
    """The certificates of the file, without anything else that may stand there."""
    try:
        found = x509.load_pem_x509_certificates(_read(field, path))
    except ValueError:
        raise ConfigInvalid(
            f"{field} is {path}, which holds no certificate in PEM format: give one that does"
        ) from None
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in found)


def _key(field: str, path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_read(field, path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigInvalid(
            f"{field} is {path}, which holds no private key in PEM format without a password: name another"
        ) from None


def _read(field: str, path: Path) -> bytes:
    try:
        data = read_named(path, PEM_BYTES_MAX)
    except OSError as error:
        raise ConfigInvalid(
            f"{field} is {path}, which cannot be read: {error.strerror}; name a file that the server's account can read"
        ) from None
    if len(data) > PEM_BYTES_MAX:
        raise ConfigInvalid(f"{field} is {path}, which has more than {PEM_BYTES_MAX} bytes: name the right file")
    return data

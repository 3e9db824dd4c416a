"""The certificate authority that signs what this registry shows, and what its clients show to it.

``material`` opens one per purpose (servers and clients have an authority each, so that a stolen node certificate can
never pose as the registry) and asks it for leaves through ``leaf``. The certificate is what people copy into trust
stores, therefore nothing here ever replaces one that exists: damage is reported, not repaired.
Profile: RFC 5280 sections 4.2.1.1-3 and 4.2.1.9, as strict verifiers (OpenSSL's X509_STRICT, rustls) want it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from sluice.errors import ConfigInvalid
from sluice.pki.durable import PUBLIC_MODE, make_directory, read_bounded, write_durably

AUTHORITY_LIFE = timedelta(days=3653)
CLOCK_SKEW = timedelta(hours=1)
PEM_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority in memory: its certificate, its key, and where the certificate lies for people to copy."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes
    path: Path


def open_authority(directory: Path, stem: str, common_name: str, now: datetime) -> Authority:
    """Load ``<stem>.crt`` and ``<stem>.key`` from ``directory``, or make them when there is no certificate yet.

    ``now`` is UTC and aware. A key without its certificate gets a new certificate, which old copies still verify:
    both carry the same name and key. Raises ConfigInvalid when either is damaged, when they do not belong together,
    or when the certificate has expired.
    """
    make_directory(directory)
    crt, pem_key = directory / f"{stem}.crt", directory / f"{stem}.key"
    return load_authority(directory, stem, now) or _make(crt, pem_key, common_name, now)


def load_authority(directory: Path, stem: str, now: datetime) -> Authority | None:
    """The authority that is there, None where it has no certificate; makes nothing. Raises as ``open_authority``."""
    crt, pem_key = directory / f"{stem}.crt", directory / f"{stem}.key"
    if (pem := read_bounded(crt, PEM_BYTES_MAX)) is None:
        return None
    certificate, key = _parse_certificate(crt, pem), _load_key(pem_key)
    if key is None or key.public_key() != certificate.public_key():
        state = "missing" if key is None else "not the key of the certificate"
        raise ConfigInvalid(
            f"authority key {pem_key} is {state}; restore it from a backup,"
            f" or remove {crt} and {pem_key} to have a new authority made, which every client must then trust anew"
        )
    if certificate.not_valid_after_utc <= now:
        raise ConfigInvalid(
            f"authority certificate {crt} expired on {certificate.not_valid_after_utc:%Y-%m-%d};"
            " remove it to have one made for the same key, and give that to the clients"
        )
    return Authority(certificate, key, crt)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 in PEM, unencrypted: the one form that OpenSSL, rustls and Go all read."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """One PEM block."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, in hexadecimal: what tools show and compare."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """What an ECDSA key may do: sign certificates and revocations, or sign handshakes; never both."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _make(crt: Path, pem_key: Path, common_name: str, now: datetime) -> Authority:
    key = _load_key(pem_key)
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        write_durably(pem_key, key_pem(key))
    certificate = _self_signed(key, common_name, now)
    write_durably(crt, certificate_pem(certificate), mode=PUBLIC_MODE)
    return Authority(certificate, key, crt)


def _self_signed(key: ec.EllipticCurvePrivateKey, common_name: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _parse_certificate(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigInvalid(
            f"authority certificate {path} is not a PEM certificate ({error}); restore it from a backup,"
            " or remove it to have one made for the same key"
        ) from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    pem = read_bounded(path, PEM_BYTES_MAX)
    if pem is None:
        return None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigInvalid(
            f"authority key {path} is not an unencrypted PEM key ({error}); restore it from a backup,"
            " or remove it and its certificate to have a new authority made"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigInvalid(f"authority key {path} is not an elliptic curve key; put the one there that Sluice made")
    return key

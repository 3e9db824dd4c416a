"""The files that the TLS listeners are started with: made and renewed here, or given by the operator and checked.

``server.listen`` calls ``ensure_server_certificate`` at start and again whenever ``renew_at`` has passed, then tells
the running server to read the files anew. Layout of the directory: ``ca.crt`` and ``ca.key`` (the authority that
clients trust), ``server.crt`` (leaf, then authority) and ``server.key``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from sluice.errors import ConfigInvalid
from sluice.pki.authority import PEM_BYTES_MAX, Authority, certificate_pem, fingerprint, open_authority
from sluice.pki.durable import PUBLIC_MODE, read_bounded, write_durably
from sluice.pki.leaf import Leaf, is_due, issue_client, issue_server, parse_names, renew_at

SERVER_AUTHORITY_NAME = "Sluice registry CA"
CLIENT_AUTHORITY_NAME = "Sluice client CA"
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
_DER, _PUBLIC = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a TLS listener needs. ``ca`` is the file that clients trust; None when the operator gave the pair."""

    certificate: Path
    key: Path
    ca: Path | None
    not_after: datetime
    renew_at: datetime


def ensure_server_certificate(directory: Path, names: Sequence[str], now: datetime) -> ServerCertificate:
    """The registry's own certificate, made or renewed when it is due for ``names`` (host names and IP addresses).

    ``now`` is UTC and aware. Calling again changes nothing until a third of the life is left or ``names`` differ.
    Raises ConfigInvalid (bad name, damaged authority, unwritable directory) or StorageFull.
    """
    wanted = parse_names(names)
    authority = open_authority(directory, "ca", SERVER_AUTHORITY_NAME, now)
    crt, key = directory / "server.crt", directory / "server.key"
    held = _held(crt, key)
    if held is None or is_due(held, authority, wanted, now):
        leaf = issue_server(authority, wanted, now)
        # A crash between the two leaves a pair that does not match, which the next start sees and replaces.
        write_durably(key, leaf.key_pem)
        write_durably(crt, leaf.chain_pem, mode=PUBLIC_MODE)
        held = x509.load_pem_x509_certificate(leaf.chain_pem)
    return ServerCertificate(crt, key, authority.path, held.not_valid_after_utc, renew_at(held))


def client_authority(directory: Path, now: datetime) -> Authority:
    """The authority for client certificates (``client-ca.crt``, ``client-ca.key``), made when there is none.

    Its ``path`` is what a listener takes as ``ca``. Raises like ``ensure_server_certificate``.
    """
    return open_authority(directory, "client-ca", CLIENT_AUTHORITY_NAME, now)


def client_certificate(authority: Authority, name: str, now: datetime) -> Leaf:
    """A certificate with which a node or an operator called ``name`` passes such a listener.

    Raises ConfigInvalid for a name that no certificate can carry.
    """
    return issue_client(authority, name, now)


def load_given(certificate: Path, key: Path, now: datetime) -> ServerCertificate:
    """Check the operator's pair (``tls.certificate``, ``tls.key``) before a listener starts with it.

    The first block of ``certificate`` must be the server's own, valid at ``now``, and ``key`` its unencrypted key.
    Raises ConfigInvalid naming the setting, the file and the remedy.
    """
    leaf = _parse_chain(certificate, _read("tls.certificate", certificate))[0]
    if not _belongs(_parse_key(key, _read("tls.key", key)), leaf):
        raise ConfigInvalid(
            f"tls.key {key} is not the key of tls.certificate {certificate};"
            " give the pair that was issued together, the server's own certificate first in its file"
        )
    if now >= leaf.not_valid_after_utc:
        raise ConfigInvalid(f"tls.certificate {certificate} expired at {leaf.not_valid_after_utc}; have it renewed")
    if now < leaf.not_valid_before_utc:
        raise ConfigInvalid(
            f"tls.certificate {certificate} is valid only from {leaf.not_valid_before_utc}; set this machine's clock"
            " or wait"
        )
    return ServerCertificate(certificate, key, None, leaf.not_valid_after_utc, renew_at(leaf))


@dataclass(frozen=True, slots=True)
class TrustedAuthorities:
    """The CAs that a listener lets in. ``pem`` is written anew, so that the TLS library sees nothing that was not read;
    ``keys`` are the public ones (DER, SubjectPublicKeyInfo), by which an authority is known whatever it is called.
    ``ends`` has when each one ends, by the SHA-256 of its certificate in hexadecimal."""

    pem: bytes
    keys: frozenset[bytes]
    ends: Mapping[str, datetime]


def read_authorities(field: str, path: Path, now: datetime) -> TrustedAuthorities:
    """The authorities in the file that ``field`` names, without those that are over at ``now``.

    Raises ConfigInvalid naming setting, file and remedy: for a file without any, and for what is no authority at all,
    which would let itself in.
    """
    pem = _read(field, path)
    try:
        found = x509.load_pem_x509_certificates(pem)
        refused = next((one for one in found if not _is_authority(one)), None)
    except ValueError as error:
        raise ConfigInvalid(f"{field} {path} has no PEM certificate ({error}); give the CA in PEM form") from error
    if refused is not None:
        raise ConfigInvalid(f"{field} {path} has {refused.subject.rfc4514_string()!r}, which is no CA; leave it out")
    valid = [one for one in found if one.not_valid_after_utc > now]
    if not valid:
        raise ConfigInvalid(f"{field} {path} has no CA that has not expired; give the one that signs now")
    keys = frozenset(one.public_key().public_bytes(_DER, _PUBLIC) for one in valid)
    ends = {fingerprint(one): one.not_valid_after_utc for one in valid}
    return TrustedAuthorities(b"".join(certificate_pem(one) for one in valid), keys, ends)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _held(crt: Path, key: Path) -> x509.Certificate | None:
    """Our own leaf when it and its key are whole and belong together; anything else is simply issued anew."""
    crt_pem, key_pem = read_bounded(crt, PEM_BYTES_MAX), read_bounded(key, PEM_BYTES_MAX)
    if crt_pem is None or key_pem is None:
        return None
    try:
        certificate = _parse_chain(crt, crt_pem)[0]
        return certificate if _belongs(_parse_key(key, key_pem), certificate) else None
    except ConfigInvalid:
        return None


def _read(field: str, path: Path) -> bytes:
    content = read_bounded(path, PEM_BYTES_MAX)
    if content is None:
        raise ConfigInvalid(f"{field} {path} does not exist; give the path of a PEM file")
    return content


def _parse_chain(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigInvalid(f"tls.certificate {path} has no PEM certificate ({error}); give one in PEM form") from error


def _parse_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    key = _load_key(path, pem)
    if not _is_servable(key):
        raise ConfigInvalid(
            f"tls.key {path} is of a kind that the TLS library cannot serve with; give ECDSA P-256 or P-384, Ed25519,"
            f" or RSA of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits"
        )
    return key


def _is_servable(key: PrivateKeyTypes) -> bool:
    """What rustls with ring signs with; it would end the process over any other key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, ed25519.Ed25519PrivateKey)


def _load_key(path: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigInvalid(f"tls.key {path} is encrypted; give it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigInvalid(f"tls.key {path} has no PEM private key ({error}); give one in PEM form") from error


def _belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    return bool(key.public_key() == certificate.public_key())

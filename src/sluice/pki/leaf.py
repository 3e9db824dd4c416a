"""Leaf certificates: which names one carries, how long it lives, when the next is due. No I/O.

``material`` asks ``is_due`` with what it found on disk and stores what ``issue_server`` returns. Leaves live 90 days
and are renewed with a third of that left, so that a renewal that fails has a month of retries before anybody notices.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sluice.errors import ConfigInvalid
from sluice.pki.authority import CLOCK_SKEW, Authority, certificate_pem, key_pem, key_usage

LEAF_LIFE = timedelta(days=90)
RENEW_WITH_LEFT = 3  # renewed when less than one part in so many of the whole life is left
NAMES_MAX = 100
ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1", "registry.sluice.internal")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_HOSTNAME_LENGTH_MAX = 253
_COMMON_NAME_LENGTH_MAX = 64  # RFC 5280, appendix A.1: ub-common-name-length

GeneralName = x509.DNSName | x509.IPAddress


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its key as PEM. ``chain_pem`` starts with the leaf and ends with the authority."""

    chain_pem: bytes
    key_pem: bytes
    not_after: datetime


def server_names(listen_host: str, others: Iterable[str], extra: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that a registry's certificate carries when nothing else is asked for, without repetitions.

    ``others`` are the machine's name and the hosts of further listeners. The wildcard addresses name no host and a
    machine's name may be no DNS name: both are left out. ``extra`` (``tls.names``) is kept as it is, so that a wrong
    one is reported by ``parse_names``.
    """
    found = (name for name in (listen_host, *others) if _is_usable(name))
    return tuple(dict.fromkeys((*ALWAYS_NAMED, *found, *extra)))


def parse_names(names: Sequence[str], field: str = "tls.names") -> tuple[GeneralName, ...]:
    """Subject alternative names from host names and IP addresses; raises ConfigInvalid, which names ``field``."""
    if not 1 <= len(names) <= NAMES_MAX:
        raise ConfigInvalid(f"{field} has {len(names)} entries; give 1 to {NAMES_MAX}")
    return tuple(dict.fromkeys(_parse_name(name, field) for name in names))


def issue_server(
    authority: Authority, names: Sequence[GeneralName], now: datetime, common_name: str = "sluice registry"
) -> Leaf:
    """A new key and certificate for a TLS server (``now`` is UTC and aware)."""
    return _issue(authority, common_name, names, ExtendedKeyUsageOID.SERVER_AUTH, now)


def issue_client(authority: Authority, name: str, now: datetime) -> Leaf:
    """A new key and certificate for a TLS client called ``name``; raises ConfigInvalid when that cannot be a name."""
    if not 1 <= len(name) <= _COMMON_NAME_LENGTH_MAX or not name.isprintable():
        raise ConfigInvalid(
            f"client certificate name {name[:80]!r} is invalid: 1 to {_COMMON_NAME_LENGTH_MAX} printable characters"
        )
    return _issue(authority, name, (), ExtendedKeyUsageOID.CLIENT_AUTH, now)


def is_due(certificate: x509.Certificate, authority: Authority, names: Sequence[GeneralName], now: datetime) -> bool:
    """Whether to issue anew: nearly over, other names (a client's has none), or signed by another authority."""
    if now >= renew_at(certificate) or now < certificate.not_valid_before_utc:
        return True
    try:
        return names_in(certificate) != set(names) or not is_signed_by(certificate, authority.certificate)
    except (ValueError, x509.DuplicateExtension):
        return True


def names_in(certificate: x509.Certificate) -> set[GeneralName]:
    """The subject alternative names; raises ValueError or DuplicateExtension where they cannot be read."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {name for name in found if isinstance(name, x509.DNSName | x509.IPAddress)}


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's name and key are those that the certificate was signed with."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def renew_at(certificate: x509.Certificate) -> datetime:
    """The instant (UTC) from which less than a third of the certificate's life is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - (end - begin) / RENEW_WITH_LEFT


def _issue(
    authority: Authority, common_name: str, names: Sequence[GeneralName], purpose: x509.ObjectIdentifier, now: datetime
) -> Leaf:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    not_after = min(now + LEAF_LIFE, issuer.not_valid_after_utc)
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    return Leaf(certificate_pem(certificate) + certificate_pem(issuer), key_pem(key), not_after)


def _parse_name(name: str, field: str) -> GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    host = name.lower()
    if len(host) > _HOSTNAME_LENGTH_MAX or _HOSTNAME.fullmatch(host) is None:
        raise ConfigInvalid(f"{field} has {name[:300]!r}; give host names or IP addresses, without scheme and port")
    return x509.DNSName(host)


def _is_usable(name: str) -> bool:
    try:
        parsed = _parse_name(name, "")
    except ConfigInvalid:
        return False
    return isinstance(parsed, x509.DNSName) or not parsed.value.is_unspecified

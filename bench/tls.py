"""One certificate for every server, one cipher for every client.

Key type and cipher decide a good part of what TLS costs, so all peers get the same EC P-256 certificate and every
client offers TLS_AES_128_GCM_SHA256 alone (what Go's clients, containerd among them, put first). Python 3.11 and wrk
have no switch for TLS 1.3 cipher suites; an OpenSSL configuration file reaches both, and curl too.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CIPHER = "TLS_AES_128_GCM_SHA256"
_CA_NAME = "sluice bench CA"
_OPENSSL = f"""openssl_conf = openssl
[openssl]
ssl_conf = ssl
[ssl]
system_default = tls
[tls]
MinProtocol = TLSv1.3
Ciphersuites = {CIPHER}
"""


@dataclass(frozen=True)
class Identity:
    """Where the certificate, its key and the clients' OpenSSL configuration are."""

    certificate: Path
    key: Path
    openssl: Path

    def client_environment(self) -> dict[str, str]:
        """What a client process needs in its environment to speak the one cipher."""
        return {"OPENSSL_CONF": str(self.openssl)}


def make_identity(directory: Path) -> Identity:
    """Write a certificate for 127.0.0.1 and localhost, valid for a day, with its key beside it. The CA that signed it
    follows it in the same file, which serves as chain and as what to trust: rustls takes no CA as a server."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = _certificate(key, ca_key, "sluice bench"), _certificate(ca_key, ca_key, _CA_NAME)
    identity = Identity(directory / "certificate.pem", directory / "key.pem", directory / "openssl.cnf")
    identity.certificate.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    identity.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    identity.key.chmod(0o600)
    identity.openssl.write_text(_OPENSSL)
    return identity


def client_context(certificate: Path | str) -> ssl.SSLContext:
    """A verifying client's context that offers HTTP/1.1 only."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def _certificate(key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    """One for ``key``, signed by the CA with ``signer``; the CA's own where they are the same."""
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(_CA_NAME))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=key is signer, path_length=None), critical=True)
    )
    if key is not signer:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

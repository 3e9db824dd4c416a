"""Certificates that an operator gives: what the TLS library could not serve with is refused, never tried."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from sluice.errors import ConfigInvalid
from sluice.pki.material import client_authority, load_given, read_authorities

NOW = datetime.now(UTC).replace(microsecond=0)
Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def given(directory: Path, key: Key) -> tuple[Path, Path]:
    """A self-signed pair in PEM files."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
    certificate = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    crt, pem = directory / "given.crt", directory / "given.key"
    crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return crt, pem


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA-2048"),
    ],
)
def test_servable_keys_are_accepted(tmp_path: Path, key: Key) -> None:
    """The four kinds that a server is run with in practice."""
    crt, pem = given(tmp_path, key)
    made = load_given(crt, pem, NOW)
    assert (crt, pem) == (made.certificate, made.key)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(rsa.generate_private_key(65537, 1024), id="RSA-1024"),
    ],
)
def test_keys_that_would_end_the_process_are_refused(tmp_path: Path, key: Key) -> None:
    """The TLS library aborts over these; the operator reads which kinds there are instead."""
    with pytest.raises(ConfigInvalid, match=r"tls\.key .* give ECDSA P-256 or P-384"):
        load_given(*given(tmp_path, key), NOW)


def test_authorities_of_clients_are_parsed_first(tmp_path: Path) -> None:
    """A door's CA is handed on once it has been read; a key, nothing, and what is no authority are refused by name."""
    ours = client_authority(tmp_path / "ours", NOW)
    assert ours.path.read_bytes() == read_authorities("nodes.ca", ours.path, NOW).pem
    crt, pem = given(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    for wrong, reason in ((pem, "no PEM certificate"), (tmp_path / "absent", "does not exist"), (crt, "is no CA")):
        with pytest.raises(ConfigInvalid, match=rf"nodes\.ca .*{reason}"):
            read_authorities("nodes.ca", wrong, NOW)


def test_authorities_that_are_over_open_nothing(tmp_path: Path) -> None:
    """Of a CA that has expired and its successor only the successor is handed on; the expired one alone is refused."""
    old = client_authority(tmp_path / "old", NOW - timedelta(days=3654))
    new = client_authority(tmp_path / "new", NOW)
    both = tmp_path / "both.crt"
    both.write_bytes(old.path.read_bytes() + new.path.read_bytes())
    assert new.path.read_bytes() == read_authorities("peers.ca", both, NOW).pem
    with pytest.raises(ConfigInvalid, match=r"peers\.ca .* has no CA that has not expired"):
        read_authorities("peers.ca", old.path, NOW)

"""The certificates that Sluice makes are accepted by strict verifiers, renewed in time, and never half written."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sluice.errors import ConfigInvalid, StorageFull
from sluice.pki.authority import open_authority
from sluice.pki.durable import create_durably, read_bounded, write_durably
from sluice.pki.leaf import LEAF_LIFE, server_names
from sluice.pki.material import (
    ServerCertificate,
    client_authority,
    client_certificate,
    ensure_server_certificate,
    load_given,
)

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ("localhost", "127.0.0.1", "::1", "registry.sluice.internal")
STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN


def _names_in(path: Path) -> set[str]:
    leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    return {str(name.value) for name in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """One TLS connection over a real socket pair; what the client read from the server."""
    ours, theirs = socket.socketpair()
    refusals: list[Exception] = []

    def answer() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as tls:
                tls.sendall(b"hello")
        except (ssl.SSLError, OSError) as error:
            refusals.append(error)
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        ours.settimeout(10)
        with client.wrap_socket(ours, server_hostname=name) as tls:
            return tls.recv(5)
    finally:
        ours.close()
        thread.join()


def _contexts(made: ServerCertificate) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.ca))
    client.verify_flags |= STRICT
    return server, client


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "registry.sluice.internal"])
def test_strict_client_accepts_the_certificate_under_each_name(tmp_path: Path, name: str) -> None:
    """A client that trusts ca.crt and checks RFC 5280 strictly connects by host name, IPv4 and IPv6."""
    server, client = _contexts(ensure_server_certificate(tmp_path, NAMES, NOW))

    assert _shake_hands(server, client, name) == b"hello"


def test_name_that_is_not_carried_is_refused(tmp_path: Path) -> None:
    """The same client refuses the certificate for another name."""
    server, client = _contexts(ensure_server_certificate(tmp_path, NAMES, NOW))

    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(server, client, "example.org")


def test_openssl_finds_nothing_to_object_to(tmp_path: Path) -> None:
    """``openssl verify -x509_strict -purpose sslserver`` passes, as a second opinion."""
    made = ensure_server_certificate(tmp_path, NAMES, NOW)

    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(made.ca), str(made.certificate)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, f"{made.certificate}: OK\n") == (done.returncode, done.stdout), done.stderr


def test_client_certificate_passes_a_listener_that_demands_one(tmp_path: Path) -> None:
    """A listener that trusts the client authority admits its certificate; the server authority's leaf is refused."""
    made = ensure_server_certificate(tmp_path, NAMES, NOW)
    authority = client_authority(tmp_path, NOW)
    leaf = client_certificate(authority, "node-1", NOW)
    write_durably(tmp_path / "node.crt", leaf.chain_pem)
    write_durably(tmp_path / "node.key", leaf.key_pem)
    server, client = _contexts(made)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= STRICT
    server.load_verify_locations(authority.path)

    client.load_cert_chain(made.certificate, made.key)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert _shake_hands(server, client, "localhost") == b"hello"
    client.load_cert_chain(tmp_path / "node.crt", tmp_path / "node.key")

    assert _shake_hands(server, client, "localhost") == b"hello"


def test_second_call_changes_nothing(tmp_path: Path) -> None:
    """Until it is due, the certificate and every file stay byte for byte."""
    first = ensure_server_certificate(tmp_path, NAMES, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    second = ensure_server_certificate(tmp_path, tuple(reversed(NAMES)), NOW + LEAF_LIFE / 2)

    assert first == second
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_files_are_private_where_they_must_be(tmp_path: Path) -> None:
    """Keys are 0600 and certificates 0644 whatever the umask, in a directory for the owner alone, without leftovers."""
    before = os.umask(0o377)
    try:
        ensure_server_certificate(tmp_path / "data" / "tls", NAMES, NOW)
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data" / "tls").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}


@pytest.mark.parametrize(
    ("left", "renewed"),
    [(LEAF_LIFE / 3 + timedelta(hours=2), False), (LEAF_LIFE / 3 - timedelta(hours=2), True), (-LEAF_LIFE, True)],
)
def test_renewal_comes_with_a_third_of_the_life_left(tmp_path: Path, left: timedelta, renewed: bool) -> None:
    """The leaf is issued anew within its last third and after its end, under the same authority."""
    first = ensure_server_certificate(tmp_path, NAMES, NOW)
    ca, now = (tmp_path / "ca.crt").read_bytes(), first.not_after - left

    second = ensure_server_certificate(tmp_path, NAMES, now)

    assert renewed == (second.not_after > first.not_after)
    assert second.renew_at > now
    assert ca == (tmp_path / "ca.crt").read_bytes()


def test_other_names_are_issued_at_once(tmp_path: Path) -> None:
    """Changing the names reissues the leaf with exactly the new ones."""
    ensure_server_certificate(tmp_path, NAMES, NOW)

    made = ensure_server_certificate(tmp_path, ("Registry.Example.org", "192.0.2.7"), NOW)

    assert {"registry.example.org", "192.0.2.7"} == _names_in(made.certificate)


@pytest.mark.parametrize("damage", ["server.crt", "server.key"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN NONSENSE-----\n", None])
def test_damaged_leaf_is_replaced(tmp_path: Path, damage: str, content: bytes | None) -> None:
    """A leaf or key that is missing, empty or garbage costs a new leaf, not a failed start."""
    ensure_server_certificate(tmp_path, NAMES, NOW)
    if content is None:
        (tmp_path / damage).unlink()
    else:
        (tmp_path / damage).write_bytes(content)

    server, client = _contexts(ensure_server_certificate(tmp_path, NAMES, NOW))

    assert _shake_hands(server, client, "localhost") == b"hello"


def test_key_of_another_leaf_is_noticed(tmp_path: Path) -> None:
    """A crash between the two files of a renewal leaves a pair that does not match: the next start heals it."""
    other = ensure_server_certificate(tmp_path / "other", NAMES, NOW)
    made = ensure_server_certificate(tmp_path / "own", NAMES, NOW)
    made.key.write_bytes(other.key.read_bytes())

    server, client = _contexts(ensure_server_certificate(tmp_path / "own", NAMES, NOW))

    assert _shake_hands(server, client, "localhost") == b"hello"


def test_leaf_of_another_authority_is_replaced(tmp_path: Path) -> None:
    """After the operator had a new authority made, the leaf of the old one is not served on."""
    ensure_server_certificate(tmp_path, NAMES, NOW)
    (tmp_path / "ca.crt").unlink()
    (tmp_path / "ca.key").unlink()

    server, client = _contexts(ensure_server_certificate(tmp_path, NAMES, NOW))

    assert _shake_hands(server, client, "localhost") == b"hello"


def test_lost_authority_certificate_keeps_old_copies_valid(tmp_path: Path) -> None:
    """When only ca.crt is lost, a copy that a client kept still verifies the server."""
    made = ensure_server_certificate(tmp_path / "own", NAMES, NOW)
    copy = tmp_path / "copy.crt"
    copy.write_bytes((tmp_path / "own" / "ca.crt").read_bytes())
    (tmp_path / "own" / "ca.crt").unlink()

    server, _ = _contexts(ensure_server_certificate(tmp_path / "own", (*NAMES, "example.org"), NOW))
    client = ssl.create_default_context(cafile=str(copy))

    assert _shake_hands(server, client, "localhost") == b"hello"
    assert made.ca is not None
    assert made.ca.exists()


@pytest.mark.parametrize("damage", ["ca.crt", "ca.key"])
def test_damaged_authority_is_reported_not_replaced(tmp_path: Path, damage: str) -> None:
    """Trust is never replaced silently: a damaged authority stops the start and names the file."""
    ensure_server_certificate(tmp_path, NAMES, NOW)
    (tmp_path / damage).write_bytes(b"garbage")

    with pytest.raises(ConfigInvalid, match=damage.replace(".", r"\.")):
        ensure_server_certificate(tmp_path, NAMES, NOW)
    assert (tmp_path / damage).read_bytes() == b"garbage"


def test_missing_or_foreign_authority_key_is_reported(tmp_path: Path) -> None:
    """A certificate whose key is gone, or is another's, is told apart from a first start."""
    open_authority(tmp_path / "other", "ca", "other", NOW)
    open_authority(tmp_path / "own", "ca", "own", NOW)
    key = tmp_path / "own" / "ca.key"

    key.write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ConfigInvalid, match="not the key"):
        open_authority(tmp_path / "own", "ca", "own", NOW)
    key.unlink()
    with pytest.raises(ConfigInvalid, match="missing"):
        open_authority(tmp_path / "own", "ca", "own", NOW)


def test_expired_authority_is_reported(tmp_path: Path) -> None:
    """After ten years the start says which file to remove, instead of serving what nobody can verify."""
    open_authority(tmp_path, "ca", "own", NOW)

    with pytest.raises(ConfigInvalid, match="expired"):
        open_authority(tmp_path, "ca", "own", NOW + timedelta(days=4000))


def test_leaf_never_outlives_its_authority(tmp_path: Path) -> None:
    """Near the authority's end the leaf ends with it."""
    authority = open_authority(tmp_path, "ca", "own", NOW - timedelta(days=3600))

    made = ensure_server_certificate(tmp_path, NAMES, NOW)

    assert authority.certificate.not_valid_after_utc == made.not_after


@pytest.mark.parametrize("bad", ["", "https://example.org", "example.org:5001", "a b", "x" * 254, "é.example", "a..b"])
def test_bad_names_are_refused(tmp_path: Path, bad: str) -> None:
    """What is neither a host name nor an address is refused by setting and value."""
    with pytest.raises(ConfigInvalid, match=r"tls\.names"):
        ensure_server_certificate(tmp_path, ("localhost", bad), NOW)


def test_default_names_leave_out_what_names_nobody() -> None:
    """The wildcard address and an impossible machine name are dropped; the rest appears once, extras last."""
    assert (*NAMES, "box", "hub.example.org") == server_names("0.0.0.0", ["box"], ["hub.example.org", "localhost"])
    assert (*NAMES, "192.0.2.7") == server_names("192.0.2.7", ["no name!"])
    assert server_names("::", [""]) == NAMES


def test_given_pair_is_taken_as_it_is(tmp_path: Path) -> None:
    """A valid pair of the operator's is used under its own paths, with no authority to print."""
    made = ensure_server_certificate(tmp_path, NAMES, NOW)

    given = load_given(made.certificate, made.key, NOW)

    assert ServerCertificate(made.certificate, made.key, None, made.not_after, made.renew_at) == given


def _given(tmp_path: Path, case: str) -> tuple[Path, Path, datetime]:
    made = ensure_server_certificate(tmp_path / "a", NAMES, NOW)
    bad = tmp_path / "bad.pem"
    if case == "encrypted":
        key = rsa.generate_private_key(65537, 2048)
        lock = serialization.BestAvailableEncryption(b"secret")
        bad.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, lock)
        )
        return made.certificate, bad, NOW
    bad.write_bytes(b"\xff\x00 no PEM")
    return {
        "certificate garbage": (bad, made.key, NOW),
        "key garbage": (made.certificate, bad, NOW),
        "certificate absent": (tmp_path / "absent", made.key, NOW),
        "key absent": (made.certificate, tmp_path / "absent", NOW),
        "certificate a directory": (tmp_path, made.key, NOW),
        "other key": (made.certificate, tmp_path / "a" / "ca.key", NOW),
        "over": (made.certificate, made.key, NOW + timedelta(days=91)),
        "too early": (made.certificate, made.key, NOW - timedelta(days=1)),
    }[case]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("certificate garbage", r"tls\.certificate .*bad\.pem"),
        ("key garbage", r"tls\.key .*bad\.pem"),
        ("encrypted", r"tls\.key .*without a passphrase"),
        ("certificate absent", r"tls\.certificate .*absent"),
        ("key absent", r"tls\.key .*absent"),
        ("certificate a directory", "is a directory: name a regular file"),
        ("other key", r"tls\.key .*not the key"),
        ("over", r"tls\.certificate .*expired"),
        ("too early", r"tls\.certificate .*clock"),
    ],
)
def test_given_pair_is_checked_before_the_start(tmp_path: Path, case: str, says: str) -> None:
    """Every way in which the operator's pair can be wrong is one line that names setting, file and remedy."""
    certificate, key, now = _given(tmp_path, case)

    with pytest.raises(ConfigInvalid, match=says):
        load_given(certificate, key, now)


def test_client_names_are_bounded(tmp_path: Path) -> None:
    """A name that no certificate can carry is refused."""
    authority = client_authority(tmp_path, NOW)

    for bad in ("", "x" * 65, "a\nb"):
        with pytest.raises(ConfigInvalid, match="client certificate name"):
            client_certificate(authority, bad, NOW)


def test_create_never_replaces(tmp_path: Path) -> None:
    """Of two creators the first wins and the second learns it; nothing is left beside the file."""
    path = tmp_path / "key"

    assert [create_durably(path, b"first"), create_durably(path, b"second")] == [True, False]
    assert read_bounded(path, 100) == b"first"
    assert [path] == list(tmp_path.iterdir())


def test_oversized_file_is_not_read_whole(tmp_path: Path) -> None:
    """A file beyond its limit is refused by name; one at the limit is read."""
    path = tmp_path / "big"
    write_durably(path, b"x" * 10)

    assert read_bounded(path, 10) == b"x" * 10
    with pytest.raises(ConfigInvalid, match="more than 9 bytes"):
        read_bounded(path, 9)


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """A write that cannot take its name reports the path and removes what it had written aside."""
    (tmp_path / "key").mkdir()

    with pytest.raises(ConfigInvalid, match="key cannot be written"):
        write_durably(tmp_path / "key", b"new")
    assert [tmp_path / "key"] == list(tmp_path.iterdir())


def test_full_disk_keeps_the_old_content(tmp_path: Path) -> None:
    """On a file system without room the old file stays whole and the writer is told that the disk is full."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode != 0:
        pytest.skip("mounting a small file system needs privileges that this machine does not give")
    try:
        write_durably(tmp_path / "key", b"old")
        with pytest.raises(StorageFull, match="no space is left"):
            write_durably(tmp_path / "key", b"x" * 128 * 1024)
        assert read_bounded(tmp_path / "key", 100) == b"old"
        assert [tmp_path / "key"] == list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)

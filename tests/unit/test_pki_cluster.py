"""A cluster's authorities on disk: what they issue passes strict clients, and no crash leaves half of anything."""

from __future__ import annotations

import itertools
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from sluice.errors import ConfigInvalid, RotationUnsafe
from sluice.pki.authority import AUTHORITY_LIFE
from sluice.pki.cluster import ClusterPki, Issued, Purpose, server_names
from sluice.pki.leaf import LEAF_LIFE
from sluice.pki.rotation import Rotation, Stage, Step

NOW = datetime.now(UTC).replace(microsecond=0)
CLIENTS = (Purpose.NODES, Purpose.PEERS, Purpose.OPERATORS)
STEPS = list(Step)
WAY = (Rotation(), Rotation(Stage.TRUSTING, 1, 2), Rotation(Stage.REPLACING, 1, 2), Rotation(Stage.STABLE, 2))
CRASH = """
import itertools, os, signal, sys
from datetime import datetime
from pathlib import Path
from sluice.pki.cluster import ClusterPki, Purpose
from sluice.pki.rotation import Step

root, work, now = Path(sys.argv[1]), sys.argv[2], datetime.fromisoformat(sys.argv[3])
before = list(Step)[: list(Step).index(work)] if work in list(Step) else []

def prepare(directory):
    if work != "create":
        pki = ClusterPki.create(directory, now)
        for step in before:
            pki.take(Purpose.NODES, step, now)

def die_at(point, directory):
    left = [point]
    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    if work == "create":
        ClusterPki.create(directory, now)
    elif work == "issue":
        ClusterPki(directory).issue_client(Purpose.NODES, "n1", now)
    else:
        ClusterPki(directory).take(Purpose.NODES, Step(work), now)
    os._exit(0)

for point in itertools.count():
    directory = root / f"at-{point}"
    prepare(directory)
    child = os.fork()
    if not child:
        die_at(point, directory)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    if code == 0:
        break
"""


def leaf_of(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.certificate.encode())[0]


def verifies(bundle: str, issued: Issued, folder: Path, purpose: str) -> bool:
    """Whether OpenSSL, strict, lets this certificate in for this purpose with these CAs."""
    (folder / "bundle.pem").write_text(bundle)
    (folder / "leaf.pem").write_text(issued.certificate)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "bundle.pem", "leaf.pem"]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder).returncode == 0


def test_each_certificate_is_good_for_one_thing(tmp_path: Path) -> None:
    """OpenSSL, strict, accepts each certificate under its own CA and purpose, and under no other."""
    pki = ClusterPki.create(tmp_path / "pki", NOW)
    issued = {one: pki.issue_client(one, "worker-1", NOW) for one in CLIENTS}
    issued[Purpose.SERVERS] = pki.issue_server("cp-1", ["10.0.0.11"], NOW)
    for (shown, leaf), bundle, use in itertools.product(issued.items(), Purpose, ("sslserver", "sslclient")):
        right = shown is bundle and use == ("sslserver" if shown is Purpose.SERVERS else "sslclient")
        assert right == verifies(pki.bundle(bundle), leaf, tmp_path, use), (shown, bundle, use)


def test_names_of_certificates(tmp_path: Path) -> None:
    """A node is its certificate's common name; a replica's has its addresses, the virtual host and the loopback."""
    pki = ClusterPki.create(tmp_path, NOW)
    node = leaf_of(pki.issue_client(Purpose.NODES, "worker-1", NOW))
    server = leaf_of(pki.issue_server("cp-1", ["10.0.0.11", "2001:db8::11"], NOW, "images.example"))
    assert ["worker-1"] == [one.value for one in node.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    carried = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ["10.0.0.11", "2001:db8::11", "images.example", "localhost", "127.0.0.1", "::1"] == [
        str(one.value) for one in carried
    ]


def test_files_are_private_where_they_must_be(tmp_path: Path) -> None:
    """Keys and the state are for the owner alone, and so is the directory; certificates may be read by all."""
    pki = ClusterPki.create(tmp_path / "pki", NOW)
    pki.issue_client(Purpose.NODES, "worker-1", NOW)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "pki" / "nodes").iterdir()
    }
    assert {"1.key": 0o600, "state.json": 0o600, "1.crt": 0o644, "bundle.crt": 0o644, "issued": 0o700} == {
        name.removeprefix("pki/nodes/"): mode for name, mode in modes.items()
    }
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700


def test_create_again_changes_nothing(tmp_path: Path) -> None:
    """What is there stays: also in the middle of a rotation."""
    pki = ClusterPki.create(tmp_path, NOW)
    pki.take(Purpose.PEERS, Step.TRUST, NOW)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ClusterPki.create(tmp_path, NOW + timedelta(days=1))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_renewal_is_due_in_time(tmp_path: Path) -> None:
    """With a third of its life left, with other names, or once its signer is replaced; not before."""
    pki = ClusterPki.create(tmp_path, NOW)
    node = pki.issue_client(Purpose.NODES, "worker-1", NOW).certificate
    server = pki.issue_server("cp-1", ["10.0.0.11"], NOW).certificate
    names = server_names(["10.0.0.11"])
    late = NOW + LEAF_LIFE * 2 / 3
    assert [False, True] == [pki.is_due(Purpose.NODES, node, when, ()) for when in (late - timedelta(hours=1), late)]
    assert not pki.is_due(Purpose.SERVERS, server, NOW, names)
    assert pki.is_due(Purpose.SERVERS, server, NOW, server_names(["10.0.0.12"]))
    pki.take(Purpose.NODES, Step.TRUST, NOW)
    assert not pki.is_due(Purpose.NODES, node, NOW)
    pki.take(Purpose.NODES, Step.SIGN, NOW)
    assert pki.is_due(Purpose.NODES, node, NOW)


def test_rotation_waits_for_everybody(tmp_path: Path) -> None:
    """Signing waits for the verifiers that are named; retiring for every certificate that may be in use."""
    pki = ClusterPki.create(tmp_path, NOW)
    old = pki.issue_client(Purpose.NODES, "worker-1", NOW)
    before = pki.bundle(Purpose.NODES)
    pki.take(Purpose.NODES, Step.TRUST, NOW)
    both = pki.bundle(Purpose.NODES)
    with pytest.raises(RotationUnsafe, match="cp-2 must first trust the new CA"):
        pki.take(Purpose.NODES, Step.SIGN, NOW, trusting={"cp-1": both, "cp-2": before})
    pki.take(Purpose.NODES, Step.SIGN, NOW, trusting={"cp-1": both, "cp-2": both})
    with pytest.raises(RotationUnsafe, match="worker-1 must first show a certificate"):
        pki.take(Purpose.NODES, Step.RETIRE, NOW)
    new = pki.issue_client(Purpose.NODES, "worker-1", NOW)
    with pytest.raises(RotationUnsafe, match="worker-1"):  # issued, but nobody has said that it is in use
        pki.take(Purpose.NODES, Step.RETIRE, NOW)
    with pytest.raises(RotationUnsafe, match="worker-1"):
        pki.take(Purpose.NODES, Step.RETIRE, NOW, shown={"worker-1": old.certificate})
    pki.delivered(Purpose.NODES, "worker-1")
    assert Rotation(Stage.STABLE, 2) == pki.take(Purpose.NODES, Step.RETIRE, NOW)
    assert both == before + pki.bundle(Purpose.NODES)
    assert [False, True] == [verifies(pki.bundle(Purpose.NODES), one, tmp_path, "sslclient") for one in (old, new)]
    assert [] == [path.name for path in (tmp_path / "nodes").glob("1.*")]


def test_who_has_gone_holds_up_nothing(tmp_path: Path) -> None:
    """A name that is forgotten, or whose certificate has expired, is not waited for."""
    pki = ClusterPki.create(tmp_path, NOW)
    for name in ("gone", "expired"):
        pki.issue_client(Purpose.NODES, name, NOW - (LEAF_LIFE if name == "expired" else timedelta()))
    for step in (Step.TRUST, Step.SIGN):
        pki.take(Purpose.NODES, step, NOW)
    with pytest.raises(RotationUnsafe, match="not safe yet: gone must"):
        pki.take(Purpose.NODES, Step.RETIRE, NOW)
    pki.forget(Purpose.NODES, "gone")
    assert Rotation(Stage.STABLE, 2) == pki.take(Purpose.NODES, Step.RETIRE, NOW)
    with pytest.raises(ConfigInvalid, match="name 'gone' has no certificate among nodes"):
        pki.forget(Purpose.NODES, "gone")


def test_authorities_follow_each_other_for_years(tmp_path: Path) -> None:
    """After ten rotations there is one CA, valid for its whole life from its own beginning, and nothing else."""
    pki = ClusterPki.create(tmp_path, NOW)
    when = NOW
    for _ in range(10):
        when += AUTHORITY_LIFE / 2
        for step in Step:
            pki.take(Purpose.PEERS, step, when)
    assert Rotation(Stage.STABLE, 11) == pki.rotation(Purpose.PEERS)
    assert {"11.crt", "11.key", "bundle.crt", "state.json"} == {one.name for one in (tmp_path / "peers").iterdir()}
    assert [(11, when + AUTHORITY_LIFE)] == [
        (one.generation, one.not_after) for one in pki.held(when) if one.purpose is Purpose.PEERS
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("state.json", b"{}", "state.json is damaged"),
        ("state.json", b'{"stage":"stable","old":1,"new":2,"fingerprints":{}}', "state.json is damaged"),
        ("state.json", None, "has no CA for nodes"),
        ("1.crt", None, "is not the CA that state.json names"),
        ("1.crt", b"x", "is no.* PEM certificate"),
        ("1.key", None, "authority key .* is missing"),
    ],
)
def test_damage_is_reported_and_nothing_made_anew(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    """An authority that is missing or damaged is an error with its remedy: a new one would be trusted by nobody."""
    ClusterPki.create(tmp_path, NOW)
    path = tmp_path / "nodes" / name
    path.unlink() if content is None else path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigInvalid, match=says):
        ClusterPki(tmp_path).issue_client(Purpose.NODES, "worker-1", NOW)
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["", "-a", "a/b", "../a", "a\n", "ä", "a" * 65, "a.", ".a"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    """A name that cannot be a common name and a file's name is refused before anything is written."""
    pki = ClusterPki.create(tmp_path, NOW)
    with pytest.raises(ConfigInvalid, match=r"name is .* write up to 64"):
        pki.issue_client(Purpose.NODES, name, NOW)
    with pytest.raises(ConfigInvalid, match=r"name is .* write up to 64"):
        pki.issue_server(name, ["10.0.0.1"], NOW)
    with pytest.raises(ConfigInvalid, match="address has 'no name!'"):
        pki.issue_server("cp-1", ["no name!"], NOW)


@pytest.mark.parametrize("work", ["create", "issue", *STEPS])
def test_a_crash_leaves_the_old_or_the_new(tmp_path: Path, work: str) -> None:
    """Killed before any of its writes: what is read is the state before or after, it works, and doing it again ends
    well."""
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), work, NOW.isoformat()], check=True)
    at = STEPS.index(Step(work)) if work in STEPS else 0
    crashed = list(tmp_path.glob("at-*"))
    for directory in crashed:
        pki = ClusterPki.create(directory, NOW) if work == "create" else ClusterPki(directory)
        assert pki.rotation(Purpose.NODES) in (WAY[at : at + 2] if work in STEPS else WAY[:1])
        issued = pki.issue_client(Purpose.NODES, "n2", NOW)
        assert verifies(pki.bundle(Purpose.NODES), issued, tmp_path, "sslclient")
        if work in STEPS:
            assert WAY[at + 1] == pki.take(Purpose.NODES, Step(work), NOW)
        assert pki.bundle(Purpose.NODES) == pki.bundle_path(Purpose.NODES).read_text()
        assert [] == list((directory / "nodes").glob(".*.tmp"))
    assert len(crashed) >= 4


def test_both_bundles_open_a_real_connection(tmp_path: Path) -> None:
    """Python's strict TLS client loads the bundle of a rotation and trusts both generations."""
    pki = ClusterPki.create(tmp_path, NOW)
    pki.take(Purpose.SERVERS, Step.TRUST, NOW)
    context = ssl.create_default_context(cadata=pki.bundle(Purpose.SERVERS))
    assert len(context.get_ca_certs()) == 2

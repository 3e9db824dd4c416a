"""``sluice pki`` from end to end: a cluster's CAs made, used and rotated by hand."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from sluice.cli.app import run
from sluice.errors import ConfigInvalid
from sluice.pki.cluster import ClusterPki, Purpose
from sluice.pki.placing import place

NOW = datetime.now(UTC)
CRASH = """
import itertools, os, signal, sys
from pathlib import Path
from sluice.pki.placing import place

root = Path(sys.argv[1])
for point in itertools.count():
    directory = root / f"at-{point}"
    place(directory, "certificate 1", "key 1", "authority 1")
    child = os.fork()
    if not child:
        left = [point]
        def hook(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "shutil.rmtree"}:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        place(directory, "certificate 2", "key 2", "authority 2")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def result(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON; its message where it fails."""
    assert code == run(["pki", *arguments, "--output", "json"])
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


def test_certificates_are_issued_ready_for_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``issue`` writes is what a TLS server and its clients load, with a key that is the owner's alone."""
    pki = str(tmp_path / "pki")
    result(capsys, "init", pki)
    for kind, name, more in (("server", "cp-1", ["--address", "127.0.0.1"]), ("node", "w1", [])):
        out = tmp_path / name
        assert result(capsys, "issue", pki, kind, name, *more, "--out", str(out))["out"] == str(out)
        context = ssl.create_default_context(cafile=str(out / "ca.crt"))
        context.load_cert_chain(out / "tls.crt", out / "tls.key")
        assert (out / "tls.key").stat().st_mode & 0o777 == 0o600
    found = {(row["kind"], row["name"], row["due"]) for row in result(capsys, "status", pki)}
    assert {("servers", "cp-1", False), ("nodes", "w1", False)} < found
    assert {purpose.value for purpose in Purpose} == {kind for kind, name, _ in found if name is None}


def test_status_is_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose, until when, and what is due."""
    pki = ClusterPki.create(tmp_path, NOW)
    pki.issue_client(Purpose.NODES, "w1", NOW)
    for step in ("trust", "sign"):
        assert run(["pki", "rotate", str(tmp_path), "nodes", "--step", step]) == 0
    capsys.readouterr()
    assert run(["pki", "status", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["KIND", "NAME", "GENERATION", "EXPIRES", "RENEWAL"] == lines[0]
    assert [["nodes", "w1", "1", "due"]] == [[*line[:3], line[-1]] for line in lines if "w1" in line]


def test_rotation_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step says what comes next; the last one waits until everything has been issued anew, or is gone."""
    pki = str(tmp_path / "pki")
    result(capsys, "init", pki)
    for name in ("w1", "w2"):
        result(capsys, "issue", pki, "node", name, "--out", str(tmp_path / name))
    stages = [result(capsys, "rotate", pki, "nodes")]
    stages += [result(capsys, "rotate", pki, "nodes", "--step", step) for step in ("trust", "trust", "sign")]
    assert [("stable", "trust"), ("trusting", "sign"), ("trusting", "sign"), ("replacing", "retire")] == [
        (one["stage"], one["next_step"]) for one in stages
    ]
    assert ["w1", "w2"] == stages[-1]["waits_for"]
    assert "w1, w2 must first" in result(capsys, "rotate", pki, "nodes", "--step", "retire", code=1)
    result(capsys, "issue", pki, "node", "w1", "--out", str(tmp_path / "w1"))
    last = result(capsys, "rotate", pki, "nodes", "--gone", "w2", "--step", "retire")
    assert ("stable", 2, 1) == (last["stage"], last["signer"], len(last["trusted"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "{absent}"], "has no CA for servers; make them with `sluice pki init`"),
        (["issue", "{pki}", "server", "cp-1", "--out", "{out}"], "address is missing: give each address"),
        (["issue", "{pki}", "server", "cp-1", "--address", "a b", "--out", "{out}"], "address has 'a b'; give host"),
        (["issue", "{pki}", "node", "w1", "--address", "10.0.0.1", "--out", "{out}"], "address is '10.0.0.1': a node"),
        (["issue", "{pki}", "node", "../w1", "--out", "{out}"], "name is '../w1': write"),
        (["issue", "{pki}", "node", "w1", "--out", "{foreign}"], "is not what `sluice pki issue` writes; move it"),
        (["issue", "{pki}", "nodes", "w1", "--out", "{out}"], "'nodes' is not one of 'server', 'node'"),
        (["rotate", "{pki}", "nodes", "--step", "retire", "--gone", "x"], "name 'x' has no certificate among nodes"),
        (["rotate", "{pki}", "nodes", "--step", "sign"], "step is 'sign', too early while stable: take trust first"),
    ],
)
def test_bad_input_names_field_value_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Exit code 2, a line that helps, and nothing issued."""
    ClusterPki.create(tmp_path / "pki", NOW)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "tls.key").write_text("mine")
    places = {name: str(tmp_path / name) for name in ("pki", "absent", "out", "foreign")}
    assert run(["pki", *(one.format(**places) for one in arguments)]) == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "foreign" / "tls.key").read_text() == "mine"
    assert not (tmp_path / "out").exists()
    assert [] == [one.name for one in ClusterPki(tmp_path / "pki").held(NOW) if one.name is not None]


def test_a_pair_is_replaced_at_one_instant(tmp_path: Path) -> None:
    """Killed before any of its writes, ``place`` leaves what belongs together, and the next run tidies up."""
    subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], check=True)
    crashed = list(tmp_path.glob("at-*"))
    for directory in crashed:
        found = {(directory / name).read_text()[-1] for name in ("tls.crt", "tls.key", "ca.crt")}
        assert found in ({"1"}, {"2"})
        place(directory, "certificate 3", "key 3", "authority 3")
        kept = [os.readlink(directory / "current")]
        assert kept == [one.name for one in directory.glob(".*")]
    assert len(crashed) >= 6


def test_a_full_directory_is_reported(tmp_path: Path) -> None:
    """A path that is no directory is refused by name."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match="file cannot be created"):
        place(tmp_path / "file", "", "", "")


def test_keys_are_what_openssl_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key is unencrypted PKCS #8 on P-256."""
    result(capsys, "init", str(tmp_path / "pki"))
    result(capsys, "issue", str(tmp_path / "pki"), "operator", "ada", "--out", str(tmp_path / "ada"))
    key = serialization.load_pem_private_key((tmp_path / "ada" / "tls.key").read_bytes(), None)
    assert getattr(key, "key_size", 0) == 256

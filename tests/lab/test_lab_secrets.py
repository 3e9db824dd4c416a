"""A laboratory's passwords and keys, and what of them can be read by whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.commands import Place, raised
from lab.isolated import needs_lab
from sluice.lab.provision import read_login, read_pusher

pytestmark = needs_lab


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with raised(tmp_path_factory.mktemp("lab"), "--mode", "Direct", "--upstream", "basic") as made:
        yield made


def test_upstream_password_is_nowhere_but_in_secrets(place: Place) -> None:
    """On a node the upstream's password is in files for root alone, and in none that containerd reads."""
    lab = place.open()
    login = read_login(lab.directory, lab.topology)
    assert login is not None
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    home = lab.directory.machine(lab.topology.node("worker-1"))
    holding = [path for path in home.rglob("*") if path.is_file() and login.password.encode() in path.read_bytes()]
    assert holding
    assert all(path.stat().st_mode & 0o077 == 0 for path in holding)
    assert not any("certs.d" in path.parts or "containerd" in path.parts for path in holding)


def test_public_door(place: Place) -> None:
    """Everybody may pull at a replica's public door; who says who they are must prove it."""
    lab = place.open()
    replica = lab.topology.control_planes[0]
    user = read_pusher(lab.directory, replica)
    ask = (
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        f"https://{replica.address}:5001/v2/lab/hello/manifests/1",
    )
    logins: tuple[list[str], ...] = ([], ["-u", f"{user.user}:wrong"], ["-u", f"{user.user}:{user.password}"])
    assert ["200", "401", "200"] == [lab.run(replica, [*ask, *login]) for login in logins]


def test_logs_hold_no_password(place: Place) -> None:
    """No part has written a password into its log."""
    lab = place.open()
    login = read_login(lab.directory, lab.topology)
    assert login is not None
    logs = {path.name: path.read_bytes() for path in lab.directory.logs.iterdir()}
    assert [] == [name for name, said in logs.items() if login.password.encode() in said]

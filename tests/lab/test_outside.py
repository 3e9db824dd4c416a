"""``lab up --upstream ADDRESS``: a registry outside is reached, though the laboratory has no route to anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.callers import USERS, with_users

from lab.commands import NOTHING, Place, raised, traces
from lab.isolated import needs_lab
from sluice.lab.images import Ballast, Destination, build_image, find_busybox, push
from sluice.testing.server import SluiceServer

pytestmark = needs_lab
USER, PASSWORD = "root", "secret"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """A registry with users on this machine's own loopback, which holds an image."""
    home = tmp_path_factory.mktemp("outside")
    build_image(home / "layout", find_busybox(), "1", [Ballast(1 << 20)])
    with SluiceServer(with_users(home / "data", USERS)) as server:
        to = Destination(f"{server.url.removeprefix('https://')}/far/away", server.ca, USER, PASSWORD)
        push(home / "layout", "1", to)
        yield server


@pytest.mark.parametrize("mode", ["Proxy", "Direct"])
def test_registry_outside(outside: SluiceServer, tmp_path: Path, mode: str) -> None:
    """Every node has its images, with the password that was given, and nothing is left of it afterwards."""
    password = tmp_path.parent / f"{tmp_path.name}-password"
    password.write_text(PASSWORD + "\n")
    way = ("--upstream", outside.url, "--upstream-user", USER, "--upstream-password-file", str(password))
    with raised(tmp_path, "--mode", mode, *way, "--upstream-ca", str(outside.ca)) as place:
        assert "upstream/relay" in {row["part"] for row in place.ask("status")}
        for node in ("cp-1", "worker-1"):
            assert place.ask("pull", node, "far/away:1")["id"].startswith("sha256:")
        place.ask("fault", "kill", "upstream/relay")
        assert "upstream/relay started" in place.ask("fault", "heal", "all")["done"]
        assert place.call("down").code == 0
        assert NOTHING == traces(place)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--upstream", "http://127.0.0.1:5000"), "--upstream is http://127.0.0.1:5000: only https:// passes"),
        (("--upstream", "https://a b"), "--upstream ('https://a b') has "),
        (
            ("--upstream", "https://example.org", "--upstream-user", "me"),
            "--upstream-user and the file with its password",
        ),
        (("--upstream", "https://example.org", "--upstream-path", "x"), "--upstream-path is for the laboratory's own"),
        (
            ("--upstream", "https://example.org", "--upstream-ca", "/nowhere.crt"),
            "--upstream-ca /nowhere.crt does not exist",
        ),
        (
            ("--upstream", "https://example.org", "--upstream-ca", "/etc/hosts"),
            "--upstream-ca /etc/hosts holds no PEM certificate",
        ),
        (
            ("--upstream", "127.0.0.1:1"),
            "--upstream 127.0.0.1:1 cannot be reached from this machine (Connection refused)",
        ),
        (("--upstream", "bascic"), "name an upstream of the laboratory's own (anonymous, basic, bearer)"),
        (("--upstream", "basic", "--upstream-user", "me"), "--upstream-user is for"),
    ],
)
def test_impossible_upstreams(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot be reached so is refused with exit code 2, the flag and the reason, and nothing is made."""
    place = Place(tmp_path)
    found = place.call("up", *arguments)
    assert (2, True) == (found.code, said in found.err), found.err
    assert NOTHING == traces(place)

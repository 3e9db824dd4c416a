"""``sluice lab``: a cluster comes up, can be used from every node, and goes without a trace."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import NOTHING, SMALL, Place, raised, surroundings, traces
from lab.isolated import needs_lab
from sluice.lab.laboratory import VIRTUAL

pytestmark = needs_lab
NODES = ("cp-1", "worker-1")
PARTS = {
    "upstream",
    "cp-1/replica",
    *(f"{node}/{kind}" for node in NODES for kind in ("containerd", "balancer", "agent")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with raised(tmp_path_factory.mktemp("lab")) as made:
        yield made


def test_nothing_is_left(tmp_path: Path) -> None:
    """Up, used and down: no process, mount, network, control group or file is there that was not there before."""
    before = surroundings()
    with raised(tmp_path) as place:
        assert place.call("pull", "worker-1", "lab/hello:1").code == 0
        assert traces(place)["processes"]
        said = place.call("down")
        assert (0, "") == (said.code, said.out)
        assert "is gone" in said.err
        assert NOTHING == traces(place)
    assert before == surroundings()


def test_every_part_is_ready(place: Place) -> None:
    """After ``up`` has returned, ``status`` names every part, and each answers."""
    rows = place.ask("status")
    assert {row["part"] for row in rows} == PARTS
    assert {row["state"] for row in rows} == {"ready"}
    assert all(Path(f"/proc/{row['pid']}").exists() for row in rows)


def test_status_for_people(place: Place) -> None:
    """Without ``--output`` it is a table with a line for each part."""
    lines = place.call("status").out.splitlines()
    assert ["PART", "STATE", "PID", "ADDRESS", "MEMORY", "UP", "NOTE"] == lines[0].split()
    assert {line.split()[0] for line in lines[1:]} == PARTS


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("image", ["lab/hello:1", f"{VIRTUAL}/lab/pause:1"])
def test_pull_on_every_node(place: Place, node: str, image: str) -> None:
    """Every node pulls by the CRI, by the image's short and by its whole name."""
    held = place.ask("pull", node, image)
    assert held["id"].startswith("sha256:")
    assert held["image"] == (image if image.startswith(VIRTUAL) else f"{VIRTUAL}/{image}")


@pytest.mark.parametrize("node", NODES)
def test_component_reaches_the_virtual_address(place: Place, node: str) -> None:
    """skopeo and curl, told nothing, find the registry by its name from inside and trust its certificate."""
    found = place.call("exec", node, "--", "skopeo", "inspect", "--raw", f"docker://{VIRTUAL}/lab/hello:1")
    assert (0, "") == (found.code, found.err)
    assert '"mediaType": "application/vnd.oci.image.index.v1+json"' in found.out
    asked = place.call("exec", node, "--", "curl", "-sS", f"https://{VIRTUAL}/v2/lab/hello/tags/list")
    assert (0, '{"name":"lab/hello","tags":["1"]}') == (asked.code, asked.out.strip())


def test_exit_code_of_a_command_inside(place: Place) -> None:
    """``exec`` ends as the command does, and passes options on to it."""
    assert place.call("exec", "worker-1", "sh", "-c", "exit 7").code == 7


@pytest.mark.parametrize(
    ("machine", "command", "said"),
    [
        ("worker-1", "node status", "version   1"),
        ("worker-1", "node plan", "nothing to do"),
        ("cp-1", "fsck", "everything is whole"),
        ("cp-1", "tags lab/hello", "lab/hello"),
        ("cp-1", "gc --dry-run", "would remove"),
        ("cp-1", "cache status", "mode"),
        ("cp-1", "user list", "pusher"),
    ],
)
def test_sluice_on_a_machine(place: Place, machine: str, command: str, said: str) -> None:
    """``sluice`` itself, told nothing, finds the layout, the secrets and the replica of the machine it is run on."""
    assert place.call("pull", "worker-1", "lab/hello:1").code == 0
    found = place.call("exec", machine, "--", "sluice", *command.split())
    assert (0, True) == (found.code, said in found.out), found


def test_processes_of_the_machine_are_not_seen_inside(place: Place) -> None:
    """Inside there is the laboratory alone: its first process is number 1."""
    seen = place.call("exec", "worker-1", "cat", "/proc/1/cmdline").out
    assert "sluice/lab/init.py" in seen


def test_logs(place: Place) -> None:
    """``logs PART`` prints the end of what that part said, ``logs`` that of each of them."""
    whole = place.open().directory.log("cp-1/replica").read_text().splitlines()
    assert whole[:3] == place.call("logs", "cp-1/replica", "--lines", "10000").out.splitlines()[:3]
    assert len(place.call("logs", "cp-1/replica", "--lines", "2").out.splitlines()) == 2
    headings = [line.split()[1] for line in place.call("logs").out.splitlines() if line.startswith("== ")]
    assert PARTS == set(headings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "worker-9", "x:1"), "no machine 'worker-9'"),
        (("pull", "upstream", "x:1"), "upstream is no node"),
        (("exec", "hub", "true"), "no machine 'hub'"),
        (("logs", "cp-1/kubelet"), "no part 'cp-1/kubelet'"),
        (("up", "--workers", "0", "--control-planes", "1"), "runs in"),
        (("up", "--workers", "51"), "'--workers': 51 is not in the range 0<=x<=50"),
        (("logs", "--lines", "0"), "'--lines': 0 is not in the range x>=1"),
        (("logs", "cp-1/replica", "--lines", "-3"), "'--lines': -3 is not in the range x>=1"),
    ],
)
def test_what_is_not_there(place: Place, arguments: tuple[str, ...], said: str) -> None:
    """A wrong name or number, or a second laboratory in the directory, is refused with exit code 2 and its name."""
    found = place.call(*arguments)
    assert found.code == 2
    assert said in found.err


def test_pull_of_nothing(place: Place) -> None:
    """A pull that fails says why, with exit code 1."""
    found = place.call("pull", "worker-1", "lab/nothing:1")
    assert found.code == 1
    assert "not found" in found.err


def test_two_side_by_side(place: Place, tmp_path: Path) -> None:
    """A second laboratory has the same names and addresses, and neither notices the other."""
    with raised(tmp_path) as second:
        pids = [{row["pid"] for row in one.ask("status")} for one in (place, second)]
        assert not pids[0] & pids[1]
        assert second.call("fault", "kill", "cp-1/replica").code == 0
        assert second.call("down").code == 0
    assert {row["state"] for row in place.ask("status")} == {"ready"}


def test_no_laboratory(tmp_path: Path) -> None:
    """Where there is none, every command says so, and ``down --force`` finds nothing to do."""
    place = Place(tmp_path)
    for arguments in (
        ("status",),
        ("pull", "worker-1", "x:1"),
        ("down",),
        ("logs",),
        ("fault", "kill", "cp-1/replica"),
    ):
        found = place.call(*arguments)
        assert found.code == 2
        assert "there is no laboratory in" in found.err
    assert place.call("down", "--force").code == 0
    assert NOTHING == traces(place)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--control-planes", "0"), "'--control-planes': 0 is not in the range 1<=x<=9"),
        (("--replica-disk-mib", "63"), "'--replica-disk-mib': 63 is not in the range 64<=x<=1048576"),
        (
            ("--upstream-path", "a//b"),
            "--upstream-path ('a//b') is no path of up to 100 characters: write parts of a-z",
        ),
        (("--upstream-path", "v2"), "--upstream-path is v2, the API's own path: choose another"),
    ],
)
def test_impossible_wishes(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What ``up`` refuses is named by its flag, with the value and what is allowed, and leaves nothing."""
    place = Place(tmp_path)
    found = place.call("up", *arguments)
    assert (2, True) == (found.code, said in found.err), found
    assert NOTHING == traces(place)


def test_a_directory_that_a_shell_would_take_apart(tmp_path: Path) -> None:
    """What ``up`` suggests to try is what a shell gives back to ``sluice`` as it was."""
    place = Place(tmp_path / "it's $HOME")
    place.home.mkdir()
    try:
        lines = [shlex.split(line) for line in place.call("up", *SMALL).out.splitlines()[1:]]
    finally:
        place.call("down", "--force")
    assert ["status", "pull", "down"] == [words[2] for words in lines]
    assert {str(place.directory)} == {words[4] for words in lines}


def test_directory_of_somebody_else(tmp_path: Path) -> None:
    """A directory with other things in it is neither used nor emptied."""
    place = Place(tmp_path)
    mine = place.directory / "images" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    found = place.call("up")
    assert (2, True) == (found.code, "is no laboratory's" in found.err)
    place.call("down", "--force")
    assert mine.read_text() == "mine"


def test_without_root(tmp_path: Path) -> None:
    """Who is not root is told what a laboratory needs."""
    home = Place(tmp_path)
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-sys_admin", "--", *home.command("up")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=home.environment(), check=False)
    assert done.returncode == 1
    assert "needs root with CAP_SYS_ADMIN" in done.stderr
    assert NOTHING == traces(home)

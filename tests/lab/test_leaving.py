"""A laboratory that is interrupted leaves nothing, whenever that happens and whatever is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab.commands import NOTHING, Place, raised, surroundings, traces, wait_until
from lab.isolated import needs_lab
from sluice.lab.faults import FAULTS
from sluice.lab.ground import find_init

pytestmark = needs_lab
MOMENTS = ("", "network", "containerd", "upstream", "replica")
"""What ``up`` has just said to be ready when it is interrupted; at first, nothing."""


def read_until(up: subprocess.Popen[str], word: str) -> None:
    """Read what it says up to a line with this word; without one, wait until its first process runs."""
    assert up.stderr is not None
    while word and word not in up.stderr.readline():
        assert up.poll() is None


def begun(place: Place, moment: str) -> subprocess.Popen[str]:
    up = place.begin()
    if moment:
        read_until(up, moment)
    else:
        wait_until(lambda: find_init(place.directory) is not None, "the first process")
    return up


def finish(up: subprocess.Popen[str]) -> int:
    up.communicate(timeout=60)
    return up.returncode


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c(tmp_path: Path, moment: str) -> None:
    """Ctrl-C takes everything away again before ``up`` returns, with exit code 130."""
    before, place = surroundings(), Place(tmp_path)
    up = begun(place, moment)
    os.killpg(up.pid, signal.SIGINT)
    assert finish(up) == 130
    assert NOTHING == traces(place)
    assert before == surroundings()


def test_impatient_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C again and again does not disturb the tidying up."""
    place = Place(tmp_path)
    up = begun(place, "network")
    for _ in range(20):
        os.killpg(up.pid, signal.SIGINT)
    assert finish(up) == 130
    assert NOTHING == traces(place)


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill(tmp_path: Path, moment: str) -> None:
    """When ``up`` is killed, processes, mounts and networks go by themselves, and ``down --force`` has the files."""
    before, place = surroundings(), Place(tmp_path)
    up = begun(place, moment)
    up.kill()
    finish(up)
    wait_until(lambda: traces(place)["processes"] == [], "no process")
    assert place.call("down", "--force").code == 0
    assert NOTHING == traces(place)
    assert before == surroundings()


def test_up_after_sigkill(tmp_path: Path) -> None:
    """``up`` where an earlier one was killed begins anew."""
    place = Place(tmp_path)
    up = begun(place, "upstream")
    up.kill()
    finish(up)
    wait_until(lambda: traces(place)["processes"] == [], "no process")
    with raised(tmp_path) as again:
        assert again.call("pull", "worker-1", "lab/hello:1").code == 0
    assert NOTHING == traces(place)


def test_state_file_is_lost(tmp_path: Path) -> None:
    """Where the state file is gone, ``down`` does not know a laboratory, and ``down --force`` takes it away."""
    with raised(tmp_path) as place:
        (place.directory / "lab.json").unlink()
        assert place.call("down").code == 2
        assert place.call("down", "--force").code == 0
        assert NOTHING == traces(place)


def test_whole_directory_is_lost(tmp_path: Path) -> None:
    """Even without its directory a laboratory is found by the directory's name."""
    with raised(tmp_path) as place:
        subprocess.run(["rm", "-rf", str(place.directory)], check=True)
        assert traces(place)["processes"]
        assert place.call("down", "--force").code == 0
        assert [] == traces(place)["processes"]


def test_first_process_dies(tmp_path: Path) -> None:
    """With its first process everything else ends; ``status`` says so, and ``down`` removes the files."""
    with raised(tmp_path) as place:
        init = find_init(place.directory)
        assert init is not None
        os.kill(init, signal.SIGKILL)
        wait_until(lambda: traces(place)["processes"] == [], "no process")
        said = place.call("status")
        assert (1, True) == (said.code, "runs no longer" in said.err)
        assert place.call("down").code == 0
        assert NOTHING == traces(place)


def test_down_while_up(tmp_path: Path) -> None:
    """``down`` waits for nobody: beside an ``up`` at work it refuses, and with ``--force`` it ends both."""
    place = Place(tmp_path)
    up = begun(place, "network")
    up.send_signal(signal.SIGSTOP)  # so that it is still at work, however slow this machine is
    said = place.call("down")
    assert (1, True) == (said.code, "another command works" in said.err)
    assert place.call("down", "--force").code == 0
    up.send_signal(signal.SIGCONT)
    assert finish(up) == 1
    assert NOTHING == traces(place)


@pytest.mark.parametrize("part", ["cp-1/replica", "worker-1/containerd"])
def test_part_dies_while_it_comes_up(tmp_path: Path, part: str) -> None:
    """``up`` fails with the name of a part that ended, and what it said last, and leaves nothing."""
    place = Place(tmp_path)
    up = begun(place, "network")
    try:
        wait_until(lambda: bool(place.open().running()[part]), f"{part} runs")
        up.send_signal(signal.SIGSTOP)  # so that it is still at work, however slow this machine is
        FAULTS["kill"](place.open(), part)
    finally:
        up.send_signal(signal.SIGCONT)
        _, said = up.communicate(timeout=60)
        if up.returncode == 0:
            place.call("down", "--force")
    assert (1, True) == (up.returncode, f"sluice: {part} ended by itself" in said), said
    assert NOTHING == traces(place)

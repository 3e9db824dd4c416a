"""``sluice lab`` as a user calls it, and what of a laboratory can be seen on the machine that it runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.lab.ground import DIRECTORY_VARIABLE, marked_processes
from sluice.lab.laboratory import Laboratory, open_laboratory
from sluice.lab.state import LabDirectory

COMMAND_S = 90.0
WAIT_S = 30.0
SMALL = ("--control-planes", "1", "--workers", "1")


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Place:
    """A directory for a laboratory, in a test's own directory, which holds nothing else."""

    home: Path

    @property
    def directory(self) -> Path:
        return self.home / "here" / "lab"

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line of ``sluice lab NAME``."""
        return [sys.executable, "-m", "sluice", "lab", name, "--directory", str(self.directory), *arguments]

    def environment(self) -> dict[str, str]:
        """Temporary files go where a test can see whether any are left."""
        scratch = self.home / "tmp"
        scratch.mkdir(exist_ok=True)
        return {**os.environ, "TMPDIR": str(scratch)}

    def call(self, name: str, *arguments: str) -> Said:
        """Run it to its end."""
        done = subprocess.run(
            self.command(name, *arguments),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env=self.environment(),
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def ask(self, name: str, *arguments: str) -> Any:
        """Run it and read its JSON; it must succeed."""
        said = self.call(name, "--output", "json", *arguments)
        assert said.code == 0, said
        return json.loads(said.out)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``lab up`` in a session of its own, as on a terminal; what it says is to be read."""
        return subprocess.Popen(
            self.command("up", *SMALL, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
            start_new_session=True,
        )

    def open(self) -> Laboratory:
        return open_laboratory(self.directory)


@contextmanager
def raised(home: Path, *arguments: str) -> Iterator[Place]:
    """A laboratory that is up; it is taken down whatever happens."""
    place = Place(home)
    try:
        said = place.call("up", *SMALL, *arguments)
        assert said.code == 0, said
        yield place
    finally:
        place.call("down", "--force")


def traces(place: Place) -> dict[str, list[str]]:
    """Everything of the laboratory in a place that can be seen from outside: nothing of it once it is gone."""
    cgroup = LabDirectory(place.directory).cgroup
    mark = f"{DIRECTORY_VARIABLE}={place.directory}".encode()
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return {
        "processes": [str(pid) for pid in (*marked_processes(mark), *_naming(place.directory))],
        "mounts": [line for line in mounts if "sluice-lab" in line or str(place.directory) in line],
        "control groups": [str(one) for one in Path("/sys/fs/cgroup").glob(f"**/{cgroup}")],
        "files": sorted(str(one.relative_to(place.home)) for one in place.home.rglob("*") if one.name != "tmp"),
    }


NOTHING: dict[str, list[str]] = {"processes": [], "mounts": [], "control groups": [], "files": []}


def surroundings() -> dict[str, list[str]]:
    """What a laboratory could leave on the machine itself, by name; not what other suites make beside it."""
    folders = ("/etc", "/opt", "/var/lib", "/run", "/root")
    return {
        "networks": [one for one in _names("/run/netns") if not one.startswith("sluice-t-")],
        "interfaces": _names("/sys/class/net"),
        **{folder: [one for one in _names(folder) if not one.startswith(".")] for folder in folders},
    }


def wait_until(claim: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def _names(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _naming(directory: Path) -> Iterator[int]:
    """Processes whose command line names the directory; not the one that asks."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(directory).encode() in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            continue

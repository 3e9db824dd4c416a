"""The demo: its image is real, its story is true, and nothing of it stays but the data."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sluice.cli.demo_children import Child
from sluice.cli.demo_registry import origins_between
from sluice.errors import Unavailable
from sluice.lab.images import build_image, machine_architecture
from sluice.lab.programs import run_step

PROGRAMS = ("skopeo", "busybox", "containerd", "ctr", "runc")
needs_programs = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS) or os.geteuid() != 0, reason="needs root and make setup"
)
DEMO = [sys.executable, "-m", "sluice", "demo"]


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """The bytes that a descriptor names, checked against it."""
    digest: str = descriptor["digest"]
    content = (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert (digest, descriptor["size"]) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    return content


def names_in(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def test_image_is_consistent_and_reproducible(tmp_path: Path) -> None:
    """Every descriptor fits its bytes, each layer its diff id, and a second build has the same digest."""
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF not really")
    first, second = (build_image(tmp_path / name, program, "1") for name in ("a", "b"))
    layout = tmp_path / "a"
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    index = json.loads(blob(layout, entry))
    names = set()
    for described in index["manifests"]:
        manifest = json.loads(blob(layout, described))
        config = json.loads(blob(layout, manifest["config"]))
        tars = [gzip.decompress(blob(layout, layer)) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
        assert config["architecture"] == described["platform"]["architecture"]
        if config["architecture"] == machine_architecture():
            names = {name for tar in tars for name in names_in(tar)}
    assert first == second == entry["digest"]
    assert {"amd64", "arm64"} <= {described["platform"]["architecture"] for described in index["manifests"]}
    assert {"bin/busybox", "bin/sh", "hello", "etc/passwd"} <= names


def test_child_ends_with_its_block(tmp_path: Path) -> None:
    """Leaving the block ends the process; what it said is in its file."""
    with Child("sleeper", ["sh", "-c", "echo up; exec sleep 60"], tmp_path / "log") as child:
        child.require_running()
        process = child._process
    assert process is not None
    assert process.returncode == -signal.SIGTERM


def test_child_that_ended_is_reported(tmp_path: Path) -> None:
    """A process that ended by itself is an error with its last words."""
    with Child("sayer", ["sh", "-c", "echo no room >&2; exit 3"], tmp_path / "log") as child:
        assert child._process is not None
        child._process.wait()
        with pytest.raises(Unavailable, match=r"^sayer ended by itself: no room \("):
            child.require_running()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "echo bad >&2; exit 1"], r"^sh -c echo bad >&2; exit 1 … failed: bad$"),
        (["no-such-program"], r"^no-such-program is not installed"),
        (["sleep", "9"], r"^sleep did not end within 0 s: sleep 9$"),
    ],
)
def test_steps_that_fail_say_why(command: list[str], words: str) -> None:
    """A step's error names the command and what it said."""
    with pytest.raises(Unavailable, match=words):
        run_step(command, 0.4)


def leftovers() -> set[str]:
    """Directories and mounts of private containerds."""
    mounts = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if "/sluice-" in line}
    return mounts | {str(path) for path in Path(tempfile.gettempdir()).glob("sluice-*")}


def test_a_child_is_killed_and_started_again(tmp_path: Path) -> None:
    """What it says the second time stands behind what it said the first time."""
    log = tmp_path / "log"
    with Child("sayer", ["sh", "-c", "echo up; exec sleep 60"], log) as child:
        while not log.read_bytes():
            child.require_running()
        child.kill()
        child.start()
        while log.read_text() != "up\nup\n":
            child.require_running()


def test_origins_are_told_in_order() -> None:
    """Only what came in between, and how often."""
    before, after = Counter({"hit": 3, "stale": 1}), Counter({"hit": 5, "stale": 1, "started": 2})
    assert "2 started, 2 hit" == origins_between(before, after, ("stale", "started", "hit"))


@needs_programs
def test_story_is_told_twice(tmp_path: Path) -> None:
    """The demo pulls through the cache, with the upstream and without it; told again it finds its data; nothing else
    is left."""
    before = leftovers()
    told = [subprocess.run([*DEMO, "--once"], cwd=tmp_path, capture_output=True, text=True, check=False) for _ in "12"]
    assert [done.returncode for done in told] == [0, 0], told[0].stderr
    assert [("Hello from a container" in done.stderr, "Sluice is running." in done.stdout) for done in told] == [
        (True, True),
        (True, True),
    ]
    for outcome in (r"by tag: pulled and ran it +1 stale, \d+ hit\n", r"by digest: pulled and ran it +\d+ hit\n"):
        assert [True, True] == [re.search(outcome, done.stdout) is not None for done in told]
    for outcome in (r'header +200, 110 .*; reason="unreachable"', r"not here +502, UNAVAILABLE: .*Connection refused"):
        assert [True, True] == [re.search(outcome, done.stdout) is not None for done in told]
    for outcome, done in zip((r"3 started, \d+ upstream", r"1 upstream, \d+ hit\n"), told, strict=True):
        assert re.search(rf"ran it through the cache +{outcome}", done.stdout)
    assert [1, 1] == [done.stdout.count("200, Sluice-Cache: upstream") for done in told]
    found = "demo: found the data of an earlier run: demo/hello:1"
    assert [found in done.stderr for done in told] == [False, True]
    assert leftovers() - before == set()


@needs_programs
def test_commands_of_the_summary_work_until_ctrl_c(tmp_path: Path) -> None:
    """What the summary says to try works as printed, and SIGINT ends the demo with 0 and nothing left."""
    before = leftovers()
    with subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        while "Ctrl-C ends it" not in (line := demo.stderr.readline()):
            assert line, "the demo ended early"
        printed = [demo.stdout.readline()]
        while " cache list " not in printed[-1]:
            printed.append(demo.stdout.readline())
        tried = [
            subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
            for line in printed[-3:]
        ]
        demo.send_signal(signal.SIGINT)
        rest = demo.communicate(timeout=60)[1]
    assert [(done.returncode, done.stderr) for done in tried] == [(0, "")] * 3
    listed = [row.split()[0].partition(":")[0] for row in tried[-1].stdout.splitlines()]
    assert ["IMAGE", "demo/hello", "demo/news"] == [listed[0], *sorted(listed[1:])]
    assert "Sluice-Cache: " in tried[1].stdout.title()
    assert demo.returncode == 0, rest
    assert leftovers() - before == set()

"""The laboratory's images: consistent, reproducible, and as big as one asks."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sluice.lab.images import Ballast, build_image, machine_architecture


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


def test_layouts_name_their_ballast(tmp_path: Path) -> None:
    """A layer of ballast is as long as was asked for and a tar's blocks more, the same each time, another by seed."""
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF not really")
    sizes, digests = [], []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        index = build_image(tmp_path / name, program, "1", [Ballast(1000, seed)])
        manifests = json.loads((tmp_path / name / "blobs/sha256" / index.removeprefix("sha256:")).read_text())
        manifest = manifests["manifests"][0]["digest"].removeprefix("sha256:")
        layer = json.loads((tmp_path / name / "blobs/sha256" / manifest).read_text())["layers"][-1]
        sizes.append(layer["size"])
        digests.append(layer["digest"])
    assert [512 + 1024 + 1024] * 3 == sizes
    assert (True, False) == (digests[0] == digests[1], digests[0] == digests[2])


def sluice(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sluice", "lab", "image", *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_the_command_writes_what_skopeo_copies(tmp_path: Path) -> None:
    """A user without any registry has an image: the layout is one for skopeo, every platform of it, and its digest is
    the one that was printed."""
    done = sluice(tmp_path / "hello", "--tag", "v1", "--ballast-mib", "1", "--output", "json")
    assert (0, "") == (done.returncode, done.stderr)
    source = f"oci:{tmp_path}/hello:v1"
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", source, f"dir:{tmp_path}/copied"], check=True
    )
    copied = (tmp_path / "copied" / "manifest.json").read_bytes()
    assert json.loads(done.stdout)["digest"] == f"sha256:{hashlib.sha256(copied).hexdigest()}"
    assert {"hello", "copied"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("there",), "there exists already: name a directory that does not, or remove it"),
        (("new", "--tag", ".x"), "--tag: tag '.x' is invalid"),
        (("new", "--ballast-mib", "-1"), "--ballast-mib"),
        (("no/such/place",), "no/such/place cannot be written"),
        ((), "Missing argument 'LAYOUT'"),
    ],
)
def test_what_it_cannot_write_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    """Exit code 2, what is wrong, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    done = sluice(*words)
    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert ["there"] == [path.name for path in tmp_path.iterdir()]

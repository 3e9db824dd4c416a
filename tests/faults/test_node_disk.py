"""Disks that do not take what a node is to have: read-only, full, or breaking off in the middle. Real mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from node.given import node_layout, node_secrets, paths_below
from node.tree import put, snapshot

from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid, NodeRefused, SluiceError, StorageFull
from sluice.node.apply import apply_intent, intend, interrupted, plan_intent, undo
from sluice.node.execute import NoPrograms

STATE = "var/lib/sluice/node"
HOSTS = "etc/containerd/certs.d"
DISK_BYTES = 1 << 20
Mount = Callable[..., None]


@pytest.fixture
def mounted() -> Iterator[Mount]:
    """Mounts that end with the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with ExitStack() as stack:

        def mount(*words: str) -> None:
            if subprocess.run(["mount", *words], check=False, capture_output=True).returncode != 0:
                pytest.skip(f"this machine does not let root mount {' '.join(words[:-1])}")
            if "remount" not in words[1]:
                stack.callback(subprocess.run, ["umount", "--lazy", words[-1]], check=True)

        yield mount


def layout_below(root: Path, **changes: object) -> NodeLayout:
    return node_layout(paths=paths_below(root).model_dump(), **changes)


def read_only(mount: Mount, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(directory), str(directory))
    mount("-o", "remount,bind,ro", str(directory))


def fill(directory: Path) -> Path:
    """Take every byte that is left."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


@pytest.mark.parametrize("where", ["etc", "etc/containerd", "var"])
def test_a_read_only_directory_is_refused_beforehand(tmp_path: Path, mounted: Mount, where: str) -> None:
    """Wherever it is, nothing at all is changed, the message names it and the remedy; writable again, all goes on."""
    put(tmp_path / "etc" / "containerd" / "config.toml", b"version = 2\n")
    (tmp_path / "var" / "lib").mkdir(parents=True)
    read_only(mounted, tmp_path / where)
    before = snapshot(tmp_path)
    intent = intend(layout_below(tmp_path), node_secrets())
    with pytest.raises((NodeRefused, ConfigInvalid), match=r"[rR]ead-only file system") as caught:
        apply_intent(intent)
    assert str(tmp_path / where) in caught.value.message
    assert "mount it writable" in caught.value.message
    assert before == snapshot(tmp_path)
    mounted("-o", "remount,bind,rw", str(tmp_path / where))
    apply_intent(intent)
    assert plan_intent(intent).is_empty


def test_undo_on_a_read_only_directory_changes_nothing(tmp_path: Path, mounted: Mount) -> None:
    """What cannot be taken back whole is not taken back in part."""
    intent = intend(layout_below(tmp_path), node_secrets())
    apply_intent(intent)
    read_only(mounted, tmp_path / HOSTS)
    with pytest.raises(NodeRefused, match="is on a read-only file system: mount it writable"):
        undo(tmp_path / STATE)
    assert plan_intent(intent).is_empty


@pytest.mark.parametrize("where", ["etc", "var"])
def test_a_full_disk_changes_nothing(tmp_path: Path, mounted: Mount, where: str) -> None:
    """With no room for the runtimes' files or for our own, everything is as before; with room, it goes on."""
    (tmp_path / where).mkdir()
    mounted("-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(tmp_path / where))
    put(tmp_path / HOSTS / "other.example" / "hosts.toml", b"server = 'https://theirs'\n")
    (tmp_path / "var" / "lib").mkdir(parents=True, exist_ok=True)
    ballast = fill(tmp_path / where)
    before = snapshot(tmp_path)
    intent = intend(layout_below(tmp_path), node_secrets())
    with pytest.raises(StorageFull, match="no space is left on its file system; free some and try again"):
        apply_intent(intent)
    assert before == snapshot(tmp_path)
    ballast.unlink()
    apply_intent(intent)
    assert plan_intent(intent).is_empty


def test_a_disk_that_fills_up_in_the_middle_keeps_the_old_state(tmp_path: Path, mounted: Mount) -> None:
    """From one mode to another with room for the first files only: the applied state stays, whole."""
    etc = tmp_path / "etc"
    etc.mkdir()
    mounted("-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(etc))
    first = intend(layout_below(tmp_path), node_secrets())
    apply_intent(first)
    ballast = fill(etc)
    os.truncate(ballast, ballast.stat().st_size - 3 * 4096)
    before = snapshot(etc)
    names = [{"name": f"r{number}.example"} for number in range(20)]
    with pytest.raises(StorageFull):
        apply_intent(intend(layout_below(tmp_path, version=2, registries=names), node_secrets("another")))
    assert before == snapshot(etc)
    assert plan_intent(first).is_empty
    assert not interrupted(tmp_path / STATE)


class Breaking(NoPrograms):
    """A program that takes a directory away in the middle of an apply, as a dying disk would."""

    def __init__(self, break_it: Callable[[], None]) -> None:
        self._break = break_it

    def reload(self, program: str) -> None:
        self._break()
        super().reload(program)


@contextmanager
def halfway(tmp_path: Path, mount: Mount) -> Iterator[tuple[NodeLayout, dict[str, object]]]:
    """A second apply, whose disk becomes read-only when its first files are in place."""
    (tmp_path / "etc").mkdir()
    mount("--bind", str(tmp_path / "etc"), str(tmp_path / "etc"))
    apply_intent(intend(layout_below(tmp_path), node_secrets()))
    before = {path: fact[:2] for path, fact in snapshot(tmp_path / "etc").items()}
    second = layout_below(tmp_path, version=2, balancer={"port": 5055}, sources=("replicas", "balancer"))
    breaking = Breaking(lambda: mount("-o", "remount,bind,ro", str(tmp_path / "etc")))
    with pytest.raises(SluiceError, match="start again, which finishes or undoes it"):
        apply_intent(intend(second, node_secrets("another")), breaking)
    assert interrupted(tmp_path / STATE)
    yield second, dict(before)


def test_what_cannot_even_be_taken_back_is_ended_by_the_next(tmp_path: Path, mounted: Mount) -> None:
    """A disk that turns read-only halfway leaves the journal; once it can be written to, the next apply ends it."""
    with halfway(tmp_path, mounted) as (second, _):
        mounted("-o", "remount,bind,rw", str(tmp_path / "etc"))
        intent = intend(second, node_secrets("another"))
        apply_intent(intent)
        assert plan_intent(intent).is_empty
        assert not interrupted(tmp_path / STATE)
        assert not list(tmp_path.rglob(".sluice-*"))


def test_undo_after_a_disk_that_broke_leaves_no_trace(tmp_path: Path, mounted: Mount) -> None:
    """The same, and undo instead of another apply."""
    with halfway(tmp_path, mounted):
        mounted("-o", "remount,bind,rw", str(tmp_path / "etc"))
        undo(tmp_path / STATE)
        assert {"etc"} == set(snapshot(tmp_path))

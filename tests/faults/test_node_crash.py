"""A node whose ``apply`` or ``undo`` is killed between any two file operations.

At every such instant each hosts.toml is whole and names only files that exist, and every other file is the old or the
new one; the next run finishes or undoes, and leaves nothing lying around.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from node.given import authority, node_layout, node_secrets, paths_below
from node.tree import Fact, put, snapshot

from faults.mortal import Mortal
from sluice.cluster.documents import dump_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.node.apply import apply_intent, intend, plan_intent, undo
from sluice.node.hosts import parse_hosts
from sluice.node.plan import KEEP_S
from sluice.node.record import SECRETS

HOSTS = "etc/containerd/certs.d"
STATE = "var/lib/sluice/node"
THEIRS = b'server = "https://theirs.example"\n[host."https://theirs.example"]\n'
BEFORE_NOW, AFTER_NOW = 1000.0, 1001.0 + KEEP_S
OPERATIONS_MAX = 400
DROP_IN = "conf.d/99-sluice.toml"
EDIT = b'\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
needs_containerd = pytest.mark.skipif(shutil.which("containerd") is None, reason="asks the real containerd")
MEMORY = Path("/dev/shm")


class Node:
    """A node's tree at one path, with the documents of two states that it changes between."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "node"
        self._saved = directory / "saved"
        self.root.mkdir()
        put(self.root / HOSTS / "docker.io" / "hosts.toml", THEIRS, 0o640)
        put(self.root / HOSTS / "elsewhere.example" / "hosts.toml", THEIRS)
        self.original = snapshot(self.root)
        paths = paths_below(self.root).model_dump()
        self.first = node_layout(paths=paths)
        self.second = node_layout(
            version=2,
            mode="direct",
            paths=paths,
            sources=("upstream", "balancer", "replicas"),
            upstream={"address": "https://up.example/prefix", "authorities": authority("upstream")[0]},
            authorities=authority("next")[0],
            registries=({"name": "docker.io"}, {"name": "ghcr.io"}),
        )
        self.jobs = [
            self._job(directory / "1", self.first, node_secrets(), BEFORE_NOW),
            self._job(directory / "2", self.second, node_secrets("another", login=True), AFTER_NOW),
        ]

    def _job(self, stem: Path, layout: NodeLayout, secrets: NodeSecrets, now: float) -> dict[str, object]:
        files = {"layout": stem.with_suffix(".layout"), "secrets": stem.with_suffix(".secrets")}
        files["layout"].write_bytes(dump_document(layout))
        files["secrets"].write_bytes(dump_document(secrets))
        return {**{key: str(path) for key, path in files.items()}, "now": now, "force": True}

    def unprepared(self) -> tuple[Path, dict[str, object]]:
        """containerd's main file as the user has it, saved, and the job that prepares it."""
        config = put(Path(self.first.paths.containerd_config), b"version = 2\n\n[grpc]\n  uid = 0 # mine\n", 0o640)
        self.save()
        return config, {"prepare": self.jobs[0]["layout"]}

    @property
    def state(self) -> Path:
        return self.root / STATE

    def save(self) -> None:
        shutil.rmtree(self._saved, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.root), str(self._saved)], check=True)

    def load(self) -> None:
        shutil.rmtree(self.root)
        subprocess.run(["cp", "-a", str(self._saved), str(self.root)], check=True)

    def contents(self) -> dict[str, Fact]:
        """The files outside our memory."""
        return {path: fact[:2] for path, fact in snapshot(self.root).items() if fact[0] == "file" and STATE not in path}

    def check(self) -> None:
        """What holds at every instant."""
        check_hosts(self.root / HOSTS)


@pytest.fixture
def node() -> Iterator[Node]:
    """In memory: what SIGKILL leaves is the page cache, and a disk's flushes would only take time."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        yield Node(Path(directory))


@pytest.fixture(scope="module")
def mortal() -> Iterator[Mortal]:
    with Mortal() as one:
        yield one


def check_hosts(hosts: Path) -> None:
    """Every hosts.toml can be read, and what it names is there."""
    for path in hosts.rglob("hosts.toml"):
        raw = path.read_bytes()
        if raw == THEIRS:
            continue
        file = parse_hosts(raw)
        for host in (file.server, *file.hosts):
            for named in (host.ca, *(host.client or ())):
                assert named is None or os.path.exists(named), f"{path} names {named}, which is not there"


def check_whole(found: dict[str, Fact], *states: dict[str, Fact]) -> None:
    """Every file is that of one of the states; temporary ones are hidden, and nobody reads them."""
    for path, fact in found.items():
        if Path(path).name.startswith(".sluice-"):
            assert path.endswith(".tmp")
        else:
            assert fact in [state.get(path) for state in states], f"{path} is neither old nor new"


Kills = Callable[[dict[str, object], Node], Iterator[int]]


@pytest.fixture
def kills(mortal: Mortal, long_form: bool) -> Kills:
    """The same job from the same saved tree, killed before its first operation, its second, …, until it survives.

    The short form takes every third, and not the same ones each time.
    """
    first, step = (1, 1) if long_form else (random.randint(1, 3), 3)
    return lambda job, node: _kills(mortal, job, node, range(first, OPERATIONS_MAX, step))


def _kills(mortal: Mortal, job: dict[str, object], node: Node, numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        node.load()
        if mortal.live(job, until=number):
            assert number > 10, "nothing was tried"
            return
        yield number
    raise AssertionError(f"more than {OPERATIONS_MAX} operations")


def test_a_killed_apply_is_finished(node: Node, mortal: Mortal, kills: Kills) -> None:
    """A change of mode, CA, certificate and registries, killed anywhere: all that is read is whole, and it is done by
    the next apply, which may be killed too."""
    mortal.live(node.jobs[0])
    node.save()
    old = node.contents()
    mortal.live(node.jobs[1])
    new = node.contents()
    second = intend(node.second, node_secrets("another", login=True))
    for number in kills(node.jobs[1], node):
        node.check()
        check_whole(node.contents(), old, new)
        mortal.live(node.jobs[1], until=number // 2 + 1)
        node.check()
        mortal.live(node.jobs[1])
        assert new == node.contents(), number
        assert plan_intent(second, AFTER_NOW).is_empty


def test_a_killed_first_apply_is_undone_by_undo(node: Node, mortal: Mortal, kills: Kills) -> None:
    """Killed anywhere on a fresh node, ``undo`` afterwards restores every byte, mode, owner and time."""
    node.save()
    mortal.live(node.jobs[0])
    new = node.contents()
    for number in kills(node.jobs[0], node):
        node.check()
        check_whole(node.contents(), new, {path: fact[:2] for path, fact in node.original.items()})
        undo(node.state, force=True)
        found = {path: fact for path, fact in snapshot(node.root).items() if path not in {"var", "var/lib"}}
        assert node.original == {path: fact for path, fact in found.items() if "sluice" not in path}, number
        assert all(fact[0] == "directory" for path, fact in found.items() if "sluice" in path), number


def test_a_killed_undo_is_finished(node: Node, mortal: Mortal, kills: Kills) -> None:
    """Undo after two applies, killed anywhere, leaves what containerd can read, and is finished by the next one."""
    for job in node.jobs:
        mortal.live(job)
    node.save()
    for number in kills({"undo": str(node.state)}, node):
        node.check()
        undo(node.state, force=True)
        found = {path: fact for path, fact in snapshot(node.root).items() if fact[0] == "file"}
        assert {path: fact for path, fact in node.original.items() if fact[0] == "file"} == found, number


@needs_containerd
def test_a_killed_prepare_is_taken_back(node: Node, mortal: Mortal, kills: Kills) -> None:
    """containerd's main file at every instant is the old or the new one, and the drop-in is there before it is named;
    what undo leaves is the very file as it was, or what its owner made of it after the kill."""
    config, job = node.unprepared()
    before, state = config.read_bytes(), snapshot(config.parent)
    mortal.live(job)
    after = config.read_bytes()
    for number in kills(job, node):
        assert config.read_bytes() in {before, after}, number
        assert config.read_bytes() == before or (config.parent / DROP_IN).exists(), number
        if number % 2:
            undo(node.state)
            assert state == snapshot(config.parent), number
        else:
            config.write_bytes(config.read_bytes() + EDIT)
            undo(node.state)
            assert (before + EDIT, False) == (config.read_bytes(), (config.parent / DROP_IN).exists()), number


@needs_containerd
def test_a_killed_undo_keeps_what_the_user_wrote(node: Node, mortal: Mortal, kills: Kills) -> None:
    """Undo of a main file that was edited meanwhile, killed anywhere: edited with our import or without it, and the
    next one, without force, takes just that out."""
    config, job = node.unprepared()
    before = config.read_bytes()
    mortal.live(job)
    config.write_bytes(config.read_bytes() + EDIT)
    edited = config.read_bytes()
    node.save()
    for number in kills({"undo": str(node.state), "force": False}, node):
        assert config.read_bytes() in {edited, before + EDIT}, number
        assert config.read_bytes() == before + EDIT or (config.parent / DROP_IN).exists(), number
        undo(node.state)
        assert ({"certs.d", "config.toml"}, before + EDIT) == (
            {path.name for path in config.parent.iterdir()},
            config.read_bytes(),
        ), number


def test_a_kill_leaves_secrets_private(node: Node, kills: Kills) -> None:
    """At no instant can anybody but root read a key, be it in a temporary file, the journal or our copy."""
    node.save()
    for _ in kills(node.jobs[0], node):
        for path in node.root.rglob("*"):
            if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
                assert path.stat().st_mode & 0o077 == 0, path
    assert b"PRIVATE KEY" in (node.state / SECRETS).read_bytes()


def test_the_suite_sees_a_torn_file(node: Node, mortal: Mortal) -> None:
    """The checks can fail: a hosts.toml that names what is not there, and one that is cut, are noticed."""
    mortal.live(node.jobs[0])
    intent = intend(node.first, node_secrets())
    assert apply_intent(intent, now=BEFORE_NOW).is_empty
    path = node.root / HOSTS / "quay.io" / "hosts.toml"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b".crt", b".gone"))
    with pytest.raises(AssertionError, match="which is not there"):
        node.check()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssertionError, match="neither old nor new"):
        check_whole(node.contents(), {})
    assert tomllib.loads(whole.decode())

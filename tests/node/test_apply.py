"""A node's files on a real file system: applied, applied again, edited, in the way of others, and taken back."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.given import node_layout, node_secrets, paths_below
from node.tree import put, snapshot
from sluice.cluster.layout import NodeLayout
from sluice.errors import NodeRefused
from sluice.node.apply import Intent, apply_intent, intend, plan_intent, plan_undo, undo
from sluice.node.diff import render_diff
from sluice.node.files import Files, FileSpec
from sluice.node.plan import KEEP_S
from sluice.node.record import read_layout, read_record, read_secrets

HOSTS = "etc/containerd/certs.d"
STATE = "var/lib/sluice/node"


def layout_below(root: Path, **changes: object) -> NodeLayout:
    return node_layout(paths=paths_below(root).model_dump(), **changes)


def intent_below(root: Path, files: Files, *, force: bool = False) -> Intent:
    """Some files, by path below ``root``."""
    placed = {f"{root}/{path}": spec for path, spec in files.items()}
    return Intent(root / STATE, placed, f"{root}/{HOSTS}", force=force)


def test_an_applied_layout_is_what_is_wanted(tmp_path: Path) -> None:
    """After apply, every file has its content and mode, the plan is empty, and another apply writes nothing at all."""
    intent = intend(layout_below(tmp_path), node_secrets())
    apply_intent(intent)
    for path, spec in intent.files.items():
        assert (spec.content, spec.mode) == (Path(path).read_bytes(), Path(path).stat().st_mode & 0o7777)
    assert plan_intent(intent).is_empty
    before = snapshot(tmp_path)
    inodes = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert apply_intent(intent).is_empty
    assert (before, inodes) == (snapshot(tmp_path), {path: path.stat().st_ino for path in tmp_path.rglob("*")})


def test_the_last_good_layout_and_its_secrets_are_kept(tmp_path: Path) -> None:
    """A node can start from what was applied last; the secrets are for root alone."""
    layout, secrets = layout_below(tmp_path, version=7), node_secrets(login=True)
    apply_intent(intend(layout, secrets))
    assert (layout, secrets) == (read_layout(tmp_path / STATE), read_secrets(tmp_path / STATE))
    private = [path.name for path in (tmp_path / STATE).iterdir() if path.is_file() and not path.stat().st_mode & 0o077]
    assert ["record.json", "secrets.json"] == sorted(private)


def test_directories_of_secrets_are_private(tmp_path: Path) -> None:
    """What only root may read is in a directory that only root may enter; runtimes' directories are open."""
    apply_intent(intend(layout_below(tmp_path), node_secrets()))
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("etc/sluice/secrets", HOSTS)]
    assert [0o700, 0o755] == modes


def test_undo_leaves_no_trace(tmp_path: Path) -> None:
    """After many applies in several modes, undo brings back an empty tree, our directories gone too."""
    for version, mode in enumerate((["balancer", "replicas"], ["replicas"], []), 1):
        kind = "proxy" if mode else "unmanaged"
        apply_intent(intend(layout_below(tmp_path, version=version, mode=kind, sources=mode), node_secrets()))
    undo(tmp_path / STATE)
    assert {} == snapshot(tmp_path)
    assert undo(tmp_path / STATE).is_empty


@pytest.mark.parametrize(
    ("there", "what"),
    [
        ("registry.sluice.internal_5001_/hosts.toml", "is there already and not from Sluice"),
        ("docker.io/hosts.toml", "is there already and not from Sluice"),
        ("docker.io/ca.crt", "is not from Sluice, and for a host that Sluice serves"),
        ("registry.sluice.internal:5001/hosts.toml", "is for the same host as registry.sluice.internal_5001_"),
        ("_default/hosts.toml", "serves all hosts, and Sluice is about to take some"),
    ],
)
def test_the_users_own_hosts_are_refused(tmp_path: Path, there: str, what: str) -> None:
    """A foreign file or directory for a host that Sluice is to serve stops all of it, with path and remedy."""
    put(tmp_path / HOSTS / there, b"server = 'https://theirs'\n")
    before = snapshot(tmp_path)
    with pytest.raises(NodeRefused, match="nothing was changed") as caught:
        apply_intent(intend(layout_below(tmp_path), node_secrets()))
    assert what in caught.value.message
    assert "move it away" in caught.value.message
    assert before == snapshot(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "pipe", "file for a directory"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    """Links, directories and pipes where files should be are refused, also with force."""
    target = tmp_path / HOSTS / "docker.io" / "hosts.toml"
    target.parent.mkdir(parents=True)
    match kind:
        case "link":
            target.symlink_to(put(tmp_path / "elsewhere.toml", b""))
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case "directory":
            target.mkdir()
        case "pipe":
            os.mkfifo(target)
        case _:
            target.parent.rmdir()
            put(target.parent, b"")
    before = snapshot(tmp_path)
    for force in (False, True):
        with pytest.raises(NodeRefused, match=r"and Sluice (keeps a file|needs a directory) there"):
            apply_intent(intend(layout_below(tmp_path), node_secrets(), force=force))
    assert before == snapshot(tmp_path)


def test_force_replaces_and_undo_brings_back(tmp_path: Path) -> None:
    """A foreign file that was replaced on demand is there again after undo, whatever happened in between."""
    put(tmp_path / HOSTS / "docker.io" / "hosts.toml", b"server = 'https://theirs'\n", 0o640, (1234, 4321))
    put(tmp_path / HOSTS / "_default" / "hosts.toml", b"")
    before = snapshot(tmp_path)
    apply_intent(intend(layout_below(tmp_path), node_secrets(), force=True))
    apply_intent(intend(layout_below(tmp_path, sources=("replicas",)), node_secrets()))
    apply_intent(intend(layout_below(tmp_path, registries=()), node_secrets()))
    undo(tmp_path / STATE)
    assert before == snapshot(tmp_path)


def test_what_comes_beside_a_file_of_ours_is_in_nobodys_way(tmp_path: Path) -> None:
    """Once Sluice has a host, containerd looks at nothing else in its directory, nor at ``_default`` for it."""
    apply_intent(intend(layout_below(tmp_path), node_secrets()))
    put(tmp_path / HOSTS / "quay.io" / ".hosts.toml.swp", b"")
    put(tmp_path / HOSTS / "_default" / "hosts.toml", b"")
    apply_intent(intend(layout_below(tmp_path, sources=("replicas",)), node_secrets()))
    with pytest.raises(NodeRefused, match="_default serves all hosts"):
        apply_intent(intend(layout_below(tmp_path, registries=({"name": "ghcr.io"},)), node_secrets()))


def test_a_reader_always_sees_a_whole_file(tmp_path: Path) -> None:
    """While a layout is changed to and fro, whoever opens hosts.toml gets one of the two, and its CA is there."""
    intents = [
        intend(layout_below(tmp_path, sources=sources), node_secrets())
        for sources in (
            ("replicas",),
            ("balancer", "replicas"),
        )
    ]
    path = f"{tmp_path}/{HOSTS}/docker.io/hosts.toml"
    known = {intent.files[path].content for intent in intents}
    apply_intent(intents[0])
    ended, read, wrong = threading.Event(), [0], list[bytes]()

    def keep_reading() -> None:
        while not ended.is_set():
            content = Path(path).read_bytes()
            read[0] += 1
            if content not in known:
                wrong.append(content)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        for number in range(60):
            apply_intent(intents[(number + 1) % 2])
    finally:
        ended.set()
        reader.join()
    assert (wrong, read[0] > 60) == ([], True)


def test_an_edited_file_of_ours_is_not_overwritten(tmp_path: Path) -> None:
    """Somebody's later edit is shown and refused by apply and undo; force drops it."""
    intent = intend(layout_below(tmp_path), node_secrets())
    apply_intent(intent)
    ours = tmp_path / HOSTS / "quay.io" / "hosts.toml"
    content = ours.read_bytes()
    ours.write_bytes(content + b"# mine\n")
    plan = plan_intent(intent)
    assert "-# mine" in render_diff(plan)
    assert [str(ours)] == [one.path for one in plan.refusals]
    with pytest.raises(NodeRefused, match="was changed since Sluice wrote it"):
        undo(tmp_path / STATE)
    apply_intent(intend(layout_below(tmp_path), node_secrets(), force=True))
    assert content == ours.read_bytes()


def test_a_lost_file_or_mode_is_put_back(tmp_path: Path) -> None:
    """What was removed or made readable by others is as it should be after the next apply."""
    intent = intend(layout_below(tmp_path), node_secrets())
    apply_intent(intent)
    before = {path: fact[1] for path, fact in snapshot(tmp_path / "etc").items() if fact[0] == "file"}
    (tmp_path / HOSTS / "quay.io" / "hosts.toml").unlink()
    key = next((tmp_path / "etc/sluice/secrets").glob("*.key"))
    key.chmod(0o644)
    assert "mode 0644 -> 0600" in render_diff(plan_intent(intent))
    apply_intent(intent)
    assert before == {path: fact[1] for path, fact in snapshot(tmp_path / "etc").items() if fact[0] == "file"}
    assert key.stat().st_mode & 0o777 == 0o600


def test_what_a_running_pull_may_name_is_kept_for_a_while(tmp_path: Path) -> None:
    """After a rotation the old client files stay for KEEP_S and go with the first apply afterwards."""
    layout = layout_below(tmp_path)
    first, second = intend(layout, node_secrets()), intend(layout, node_secrets("another"))
    old = {path for path, spec in first.files.items() if spec.early} - set(second.files)
    apply_intent(first, now=1000.0)
    plan = apply_intent(second, now=2000.0)
    assert (True, 2000.0 + KEEP_S) == (all(Path(path).exists() for path in old), plan.due_at)
    assert apply_intent(second, now=2000.0 + KEEP_S - 1).is_empty
    apply_intent(second, now=2000.0 + KEEP_S)
    assert not any(Path(path).exists() for path in old)
    assert plan_intent(second).is_empty


def test_a_plan_shows_no_secret(tmp_path: Path) -> None:
    """Keys and passwords are in no diff, whether they come, change or go; public files are shown whole."""
    layout = layout_below(
        tmp_path, mode="direct", sources=("upstream", "replicas"), upstream={"address": "https://up.example"}
    )
    secrets = node_secrets(login=True)
    intent = intend(layout, secrets)
    shown = render_diff(plan_intent(intent))
    apply_intent(intent)
    shown += render_diff(plan_undo(tmp_path / STATE))
    assert secrets.upstream is not None
    assert json.dumps(secrets.upstream.password)[1:-1] not in shown
    assert "PRIVATE KEY" not in shown
    assert "+server = " in shown
    assert "(secret, not shown)" in shown


def test_a_registry_that_is_no_longer_mirrored_leaves_no_directory(tmp_path: Path) -> None:
    """An empty directory would mask ``_default``: it goes with the file, if it was ours and is empty."""
    apply_intent(intend(layout_below(tmp_path), node_secrets()))
    put(tmp_path / HOSTS / "quay.io" / "note", b"")
    apply_intent(intend(layout_below(tmp_path, registries=()), node_secrets(), force=True))
    assert ["quay.io", "registry.sluice.internal_5001_"] == sorted(os.listdir(tmp_path / HOSTS))


names = st.sampled_from([f"{top}/{name}" for top in ("etc/a", "etc/b/c", "opt") for name in ("one", "two", ".three")])
contents = st.binary(max_size=40)
specs = st.builds(FileSpec, contents, st.sampled_from([0o600, 0o644]), st.booleans())
theirs = st.tuples(contents, st.sampled_from([0o600, 0o644, 0o640, 0o4755]), st.sampled_from([(0, 0), (1234, 4321)]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, theirs), st.lists(st.dictionaries(names, specs), min_size=1, max_size=4))
def test_undo_restores_any_tree(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, tuple[bytes, int, tuple[int, int]]],
    wanted: list[dict[str, FileSpec]],
) -> None:
    """Whatever was there and whatever was applied over it, one after the other: every byte, mode and owner returns."""
    if os.geteuid() != 0:
        pytest.skip("owners can be changed by root only")
    root = tmp_path_factory.mktemp("node")
    for path, (content, mode, owner) in before.items():
        put(root / path, content, mode, owner)
    found = snapshot(root)
    for moment, files in enumerate(wanted):
        intent = intent_below(root, files, force=True)
        apply_intent(intent, now=1000.0 * moment)
        assert plan_intent(intent, now=1000.0 * moment).is_empty
        for path, spec in files.items():
            assert (spec.content, spec.mode) == ((root / path).read_bytes(), (root / path).stat().st_mode & 0o7777)
    undo(root / STATE)
    assert found == snapshot(root)


def test_parts_leave_each_others_files(tmp_path: Path) -> None:
    """What one part wants is not unwanted by the other."""
    intent = intent_below(tmp_path, {"etc/x": FileSpec(b"1")})
    apply_intent(intent)
    runtime = Intent(intent.state, {f"{tmp_path}/etc/y": FileSpec(b"2")}, intent.hosts, part="runtime")
    apply_intent(runtime)
    assert ({f"{tmp_path}/etc/x", f"{tmp_path}/etc/y"}, True, True) == (
        set(read_record(intent.state).files),
        plan_intent(intent).is_empty,
        plan_intent(runtime).is_empty,
    )

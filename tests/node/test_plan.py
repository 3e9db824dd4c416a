"""The pure plan: its order, what it is for any layout, and what it makes of what it finds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from node.given import node_layout, node_secrets
from node.layouts import layouts, secrets
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.desired import desired_files
from sluice.node.diff import render_diff
from sluice.node.files import Files, FileSpec
from sluice.node.found import FileState, Found, ancestors
from sluice.node.plan import KEEP_S, Plan, Situation, make_plan, make_undo, watched
from sluice.node.record import Record, Step

OWNER = (0, 0)
HOSTS = "/etc/containerd/certs.d"


class Disk:
    """A file system in memory that does steps as they come, and never lets a file be without its directory."""

    def __init__(self) -> None:
        self.files: dict[str, FileState] = {}
        self.directories: set[str] = set()
        self.history: list[dict[str, FileState]] = []

    def look(self, desired: Files, record: Record, hosts: str) -> Found:
        paths = watched(desired, record, hosts)
        folders = paths.directories | paths.listed
        odd = dict.fromkeys(folders & set(self.files), "a file")
        odd |= dict.fromkeys(paths.files & self.directories, "a directory")
        return Found(
            {path: self.files.get(path) for path in paths.files - set(odd)},
            {path: self.entries(path) if path in self.directories else None for path in folders},
            odd,
            OWNER,
        )

    def entries(self, path: str) -> frozenset[str]:
        every = (*self.files, *self.directories)
        return frozenset(one.removeprefix(f"{path}/").split("/")[0] for one in every if one.startswith(f"{path}/"))

    def do(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step.do:
                case "make":
                    assert step.path not in self.files
                    self.directories.add(step.path)
                case "write":
                    assert step.after is not None
                    assert step.path.rpartition("/")[0] in {*self.directories, ""}
                    self.files[step.path] = step.after.state
                case "remove":
                    del self.files[step.path]
                case "unmake":
                    assert not self.entries(step.path)
                    self.directories.remove(step.path)
            self.history.append(dict(self.files))


def planned(disk: Disk, desired: Files, record: Record, now: float = 0.0, hosts: str = HOSTS) -> Plan:
    return make_plan(Situation(desired, record, disk.look(desired, record, hosts), now, hosts))


def rendered(layout: NodeLayout, given_secrets: NodeSecrets) -> Files:
    """Its files; a layout that cannot be rendered is another suite's subject."""
    try:
        return desired_files(layout, given_secrets)
    except ConfigInvalid:
        assume(False)
        raise


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(layouts(), min_size=1, max_size=3), secrets())
def test_any_layouts_follow_each_other(several: list[NodeLayout], given_secrets: NodeSecrets) -> None:
    """Every step finds its directory, each layout ends as it is meant and needs nothing more, nothing of an old one
    stays once its time is over, and undo empties the disk."""
    disk, record = Disk(), Record()
    for moment, layout in enumerate(several):
        desired, hosts = rendered(layout, given_secrets), layout.paths.containerd_hosts
        now = moment * 2 * KEEP_S
        plan = planned(disk, desired, record, now, hosts)
        assert plan.refusals == ()
        disk.do(plan.steps)
        record = plan.record
        assert (
            desired.items()
            <= {
                path: FileSpec(file.content, file.mode, spec.early, spec.check)
                for path, file in disk.files.items()
                if (spec := desired.get(path)) is not None
            }.items()
        )
        assert planned(disk, desired, record, now, hosts).steps == ()
        later = planned(disk, desired, record, now + KEEP_S, hosts)
        disk.do(later.steps)
        record = later.record
        assert set(desired) == set(disk.files)
    disk.do(make_undo(record, disk.look({}, record, ""), force=False).steps)
    assert (disk.files, disk.directories) == ({}, set())


def test_nothing_refers_to_what_is_not_there() -> None:
    """From one CA, certificate and set of registries to others and away again: at every instant the files that any
    hosts.toml names exist."""
    disk, record = Disk(), Record()
    states = [
        desired_files(node_layout(), node_secrets()),
        desired_files(node_layout(registries=({"name": "ghcr.io"},)), node_secrets("another")),
        {},
    ]
    for moment, desired in enumerate(states):
        plan = planned(disk, desired, record, moment * 2 * KEEP_S)
        disk.do(plan.steps)
        record = plan.record
    assert len(disk.history) > 30
    for files in disk.history:
        for path, file in files.items():
            if path.endswith("hosts.toml"):
                named = [word for word in file.content.decode().split('"') if word.startswith("/") and "." in word]
                assert named
                assert set(named) <= set(files), path


def test_the_balancer_is_ready_before_anybody_is_sent_to_it() -> None:
    """Its configuration is judged and taken over before hosts.toml names it, and it stops after none does."""
    disk = Disk()
    plan = planned(disk, desired_files(node_layout(), node_secrets()), Record())
    order = [(step.do, step.path.rpartition("/")[2]) for step in plan.steps]
    hosts = [at for at, (_, name) in enumerate(order) if name == "hosts.toml"]
    assert order.index(("write", "haproxy.cfg")) < order.index(("reload", "haproxy")) < min(hosts)
    disk.do(plan.steps)
    gone = planned(disk, desired_files(node_layout(sources=("replicas",)), node_secrets()), plan.record)
    order = [(step.do, step.path.rpartition("/")[2]) for step in gone.steps]
    assert order.index(("write", "hosts.toml")) < order.index(("stop", "haproxy"))
    for steps in (gone.steps, make_undo(plan.record, disk.look({}, plan.record, ""), force=False).steps):
        numbers = [step.group for step in steps]
        assert numbers == sorted(numbers)
        assert ("stop", "haproxy") in [(step.do, step.path) for step in steps]


def test_another_version_alone_needs_no_steps() -> None:
    """A layout that grew its version and nothing else changes no file."""
    disk = Disk()
    plan = planned(disk, desired_files(node_layout(), node_secrets()), Record())
    disk.do(plan.steps)
    assert planned(disk, desired_files(node_layout(version=9), node_secrets()), plan.record).is_empty


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ({"balancer": "/etc/containerd/certs.d/docker.io", "kubelet_credentials": "/etc/x/hosts.toml"}, None),
        ({"kubelet_credentials": "/var/lib/sluice/node/record.json"}, "would be /var/lib/sluice/node/record.json"),
        ({"kubelet_credentials": "/etc/containerd/certs.d/docker.io/hosts.toml"}, "two different files would be"),
        ({"kubelet_credentials": "/etc/containerd/certs.d/docker.io"}, "would be a file and a directory"),
        ({"kubelet_credentials": "/var/lib/sluice/node/balancer"}, "would be a file and a directory"),
    ],
)
def test_paths_that_meet_are_refused(paths: dict[str, str], why: str | None) -> None:
    """Two parts of a node cannot have one file, nor any of them one of Sluice's own."""
    layout = node_layout(paths=paths)
    if why is None:
        assert desired_files(layout, node_secrets())
        return
    with pytest.raises(ConfigInvalid, match=why):
        desired_files(layout, node_secrets())


def test_unmanaged_wants_nothing() -> None:
    """Mode unmanaged has no files, and plans away those of before: the CA files last."""
    disk = Disk()
    plan = planned(disk, desired_files(node_layout(), node_secrets()), Record())
    disk.do(plan.steps)
    unmanaged = node_layout(mode="unmanaged", sources=())
    assert desired_files(unmanaged, node_secrets()) == {}
    gone = planned(disk, {}, plan.record, 5.0)
    disk.do(gone.steps)
    assert all(gone.record.files[path].early for path in disk.files)
    assert gone.due_at == 5.0 + KEEP_S


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(texts, texts)
def test_a_diff_of_anything_is_text(before: str, after: str) -> None:
    """Whatever a file holds, its change is shown, and two equal files have none."""
    disk = Disk()
    first = planned(disk, {"/a/b": FileSpec(before.encode())}, Record())
    disk.do(first.steps)
    shown = render_diff(planned(disk, {"/a/b": FileSpec(after.encode())}, first.record))
    assert (shown == "") == (before == after)


def test_ancestors_end_below_the_root() -> None:
    """The root is nobody's to make."""
    assert {"/a", "/a/b", "/d"} == ancestors(["/a/b/c", "/d/e", "/f"])

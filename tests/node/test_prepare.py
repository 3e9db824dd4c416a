"""Containerd's own configuration: judged by what the installed containerd makes of it, changed by a drop-in only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.given import node_layout, node_secrets, paths_below
from node.tree import put, snapshot
from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.apply import apply_intent, intend, plan_intent, undo
from sluice.node.containerd import ContainerdFacts, dump_config, read_containerd, registry_table
from sluice.node.diff import render_diff
from sluice.node.preflight import check_containerd
from sluice.node.prepare import intend_preparation, prepare

pytestmark = pytest.mark.skipif(shutil.which("containerd") is None, reason="asks the real containerd")

CRI = 'plugins."io.containerd.grpc.v1.cri"'
DEBIAN = f"""version = 2

[plugins]
  [{CRI}]
    sandbox_image = "pause:mine"  # ours
    [{CRI}.cni]
      bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
OTHERS = f'version = 2\n[{CRI}.containerd]\nsnapshotter = "native"\n'


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    return node_layout(paths=paths_below(tmp_path).model_dump())


def configured(layout: NodeLayout, text: str) -> Path:
    return put(Path(layout.paths.containerd_config), text.encode())


def found(layout: NodeLayout) -> list[str]:
    facts = read_containerd(Path(layout.paths.containerd_config))
    return [one.what for one in check_containerd(layout, facts)]


def without_path(dump: dict[str, object]) -> dict[str, object]:
    """An effective configuration but for what ``prepare`` is to change."""
    del registry_table(dump)["config_path"]
    return {key: value for key, value in dump.items() if key != "imports"}


@pytest.mark.parametrize(
    "text",
    [
        None,
        DEBIAN,
        "# nothing\n",
        f"imports = []\n{DEBIAN}",
        f'imports = ["{{etc}}/more.d/*.toml"] # mine\n{DEBIAN}',
        f'imports = ["{{etc}}/one.toml"]\n{DEBIAN}',
        f'{DEBIAN}[{CRI}.registry]\nconfig_path = "/etc/containerd/certs.d:/etc/docker/certs.d"\n',
    ],
)
def test_prepare_sets_config_path_and_nothing_else(layout: NodeLayout, text: str | None) -> None:
    """Whatever was there, with imports or without: containerd's effective configuration differs by that one key,
    preparing again changes nothing, and undo brings the files back."""
    etc = Path(layout.paths.containerd_config).parent
    etc.mkdir(parents=True)
    put(etc / "more.d" / "10-mine.toml", OTHERS.encode())
    put(etc / "one.toml", OTHERS.encode())
    config = etc / "config.toml" if text is None else configured(layout, text.replace("{etc}", str(etc)))
    before, effective = snapshot(etc), dump_config(config)
    assert len(found(layout)) == 1
    intent = intend_preparation(layout)
    assert before == snapshot(etc)
    assert f'+config_path = "{layout.paths.containerd_hosts}"' in render_diff(plan_intent(intent))
    prepare(layout, intent)
    after = dump_config(config)
    assert layout.paths.containerd_hosts == registry_table(after)["config_path"]
    assert without_path(effective) == without_path(after)
    assert [] == found(layout)
    assert plan_intent(intend_preparation(layout)).is_empty
    undo(Path(layout.paths.state))
    assert before == snapshot(etc)


def test_a_later_change_is_taken_over_by_preparing_again(layout: NodeLayout) -> None:
    """On containerd 1.x the drop-in's table hides a later one: another prepare makes it count."""
    config = configured(layout, DEBIAN)
    prepare(layout, intend_preparation(layout))
    config.write_text(config.read_text().replace("pause:mine", "pause:new"))
    prepare(layout, intend_preparation(layout))
    plugin = dump_config(config)["plugins"]["io.containerd.grpc.v1.cri"]
    assert ("pause:new", layout.paths.containerd_hosts) == (plugin["sandbox_image"], plugin["registry"]["config_path"])


def test_apply_and_prepare_do_not_undo_each_other(layout: NodeLayout) -> None:
    """What one of them wrote stays when the other runs, and one undo takes back both."""
    config = configured(layout, DEBIAN)
    before = snapshot(config.parent)
    prepare(layout, intend_preparation(layout))
    intent = intend(layout, node_secrets())
    apply_intent(intent)
    config.write_text(config.read_text() + "# a comment of mine\n")
    assert plan_intent(intent).is_empty
    prepare(layout, intend_preparation(layout))
    assert plan_intent(intent).is_empty
    undo(Path(layout.paths.state), force=True)
    assert before == snapshot(config.parent)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            f'version = 2\n[{CRI}.registry.mirrors."docker.io"]\nendpoint = ["https://m"]\n',
            "registry.mirrors for docker",
        ),
        (f'version = 2\n[{CRI}.registry.configs."a.b".tls]\nca_file = "/x"\n', "registry.configs with tls for a.b"),
        ("version = 1\n", "is of version 1, which cannot set config_path"),
        ("version = \n", "containerd does not accept"),
        ('version = 2\nimports = [\n"/a/o*.toml",\n]\n', "imports that is hard to change"),
    ],
)
def test_what_has_to_be_removed_first_is_refused(layout: NodeLayout, text: str, why: str) -> None:
    """Legacy tables, old versions and broken files are named; nothing is written."""
    config = configured(layout, text)
    with pytest.raises(ConfigInvalid, match=why):
        intend_preparation(layout)
    assert {"config.toml"} == {path.name for path in config.parent.iterdir()}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("version = 2\n", "does not set config_path"),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = "/etc/containerd/other"\n', "and the layout writes to"),
        (f'version = 2\n[{CRI}.registry]\nconfig_path = "/a:/b"\n', "of which containerd's pulls take none"),
        (f'version = 2\n[{CRI}.registry.mirrors."docker.io"]\nendpoint = ["https://m"]\n', ".mirrors for docker.io"),
        (f'version = 2\n[{CRI}.registry.configs."a.b".tls]\nca_file = "/x"\n', ".configs with tls for a.b"),
        ('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n', "disables the plugin"),
        ("version = ", "is not usable (containerd does not accept"),
    ],
)
def test_preflight_names_what_is_in_the_way(layout: NodeLayout, text: str, what: str) -> None:
    """Each finding says where and what to do."""
    configured(layout, text)
    facts = read_containerd(Path(layout.paths.containerd_config))
    findings = check_containerd(layout, facts)
    assert any(what in one.what for one in findings), findings
    assert all(one.where == layout.paths.containerd_config and one.remedy and one.blocking for one in findings)


def test_files_are_read_where_containerd_is_missing(layout: NodeLayout) -> None:
    """Without the program, what its files say is found all the same, imports included, and that it is missing."""
    etc = Path(layout.paths.containerd_config).parent
    put(etc / "more.d" / "a.toml", f'version = 2\n[{CRI}.registry]\nconfig_path = "/elsewhere"\n'.encode())
    configured(layout, f'version = 2\nimports = ["{etc}/more.d/*.toml"]\n')
    facts = read_containerd(etc / "config.toml", "no-containerd-here")
    whats = [one.what for one in check_containerd(layout, facts)]
    assert (False, "/elsewhere") == (facts.asked, registry_table(facts.config)["config_path"])
    assert "is not installed, or does not tell its version" in whats


@pytest.mark.parametrize(
    ("version", "known"), [((1, 6, 0), True), ((2, 3, 9), True), ((1, 5, 9), False), ((2, 4, 0), False)]
)
def test_unknown_versions_are_named(layout: NodeLayout, version: tuple[int, int, int], known: bool) -> None:
    """1.6 to 2.3 are what is known; any other is a finding that blocks nothing. Both places of the key are known."""
    for number, plugin in ((2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.images")):
        registry = {"config_path": layout.paths.containerd_hosts}
        config = {"version": number, "plugins": {plugin: {"registry": registry}}}
        findings = check_containerd(layout, ContainerdFacts(version, config, None, asked=True, stale=False))
        assert ([] if known else [False]) == [one.blocking for one in findings]


def test_other_runtimes_are_not_asked_about_containerd(layout: NodeLayout) -> None:
    """A node of CRI-O, and one that is not managed, have no findings about containerd."""
    facts = ContainerdFacts(None, {}, "broken", asked=True, stale=False)
    for changes in ({"runtimes": ("cri-o",)}, {"mode": "unmanaged", "sources": ()}):
        assert () == check_containerd(layout.model_copy(update=changes), facts)

"""Containerd's own configuration: judged by what the installed containerd makes of it, changed by a drop-in only."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path

import pytest

from node.given import node_layout, node_secrets, paths_below
from node.tree import put, snapshot
from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid, NodeRefused
from sluice.node.apply import apply_intent, intend, plan_intent, undo
from sluice.node.containerd import ContainerdFacts, dump_config, installed_version, read_containerd, registry_table
from sluice.node.diff import render_diff
from sluice.node.preflight import check_containerd
from sluice.node.prepare import intend_preparation, prepare
from sluice.node.record import read_record

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
    """The drop-in's table hides a later one, which is a finding that blocks no image: another prepare makes it count.
    What is about another plugin is none."""
    config = configured(layout, DEBIAN)
    prepare(layout, intend_preparation(layout))
    config.write_text(f'{config.read_text()}[debug]\nlevel = "info"\n')
    assert [] == found(layout)
    config.write_text(config.read_text().replace("pause:mine", "pause:new"))
    facts = read_containerd(config)
    (finding,) = check_containerd(layout, facts)
    assert (("sandbox_image",), False, str(config)) == (facts.hidden, finding.blocking, finding.where)
    assert "was changed since sluice node prepare, without effect" in finding.what
    assert "run sluice node prepare again" in finding.remedy
    prepare(layout, intend_preparation(layout))
    assert [] == found(layout)
    plugin = dump_config(config)["plugins"]["io.containerd.grpc.v1.cri"]
    assert ("pause:new", layout.paths.containerd_hosts) == (plugin["sandbox_image"], plugin["registry"]["config_path"])


def test_apply_and_prepare_do_not_undo_each_other(layout: NodeLayout) -> None:
    """What one of them wrote stays when the other runs, and one undo takes back both, but for the user's comment."""
    config = configured(layout, DEBIAN)
    before = sorted(snapshot(config.parent))
    prepare(layout, intend_preparation(layout))
    intent = intend(layout, node_secrets())
    apply_intent(intent)
    config.write_text(config.read_text() + "# a comment of mine\n")
    assert plan_intent(intent).is_empty
    prepare(layout, intend_preparation(layout))
    assert plan_intent(intent).is_empty
    undo(Path(layout.paths.state), force=True)
    assert (before, f"{DEBIAN}# a comment of mine\n") == (sorted(snapshot(config.parent)), config.read_text())


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("later", [f'\n[{CRI}.containerd]\nsnapshotter = "native"\n', '\n[debug]\nlevel = "info"\n'])
@pytest.mark.parametrize("before", [DEBIAN, DEBIAN.replace("\n", "\r\n"), f'imports = ["/a/*.toml"] # mine\n{DEBIAN}'])
def test_undo_keeps_what_the_user_wrote_meanwhile(layout: NodeLayout, before: str, later: str, again: bool) -> None:
    """Prepared, edited by its owner, prepared again or not: undo takes our import out of containerd's main file, and
    every byte that is not ours stays, with the mode and the owner that it has by now."""
    config = configured(layout, before)
    mine = (0o640, 1234, 4321) if os.geteuid() == 0 else (0o640, os.geteuid(), os.getegid())
    prepare(layout, intend_preparation(layout))
    config.write_bytes(config.read_bytes() + later.encode())
    os.chown(config, *mine[1:])
    config.chmod(mine[0])
    if again:
        prepare(layout, intend_preparation(layout))
    undo(Path(layout.paths.state))
    found = config.stat()
    assert (before + later).encode() == config.read_bytes()
    assert (["config.toml"], mine) == (
        os.listdir(config.parent),
        (found.st_mode & 0o777, found.st_uid, found.st_gid),
    )


def test_undo_keeps_a_file_that_sluice_began(layout: NodeLayout) -> None:
    """Where there was no main file, what the user has added to ours stays readable: the version stays with it."""
    config = Path(layout.paths.containerd_config)
    config.parent.mkdir(parents=True)
    prepare(layout, intend_preparation(layout))
    config.write_text(config.read_text() + OTHERS.removeprefix("version = 2\n"))
    undo(Path(layout.paths.state))
    version = {"version": 3 if (installed_version() or ()) >= (2, 0, 0) else 2}
    assert {**version, **tomllib.loads(OTHERS.removeprefix("version = 2\n"))} == tomllib.loads(config.read_text())


def test_a_main_file_of_another_owner_stays_theirs(layout: NodeLayout) -> None:
    """Prepare changes neither mode nor owner, and undo brings back the very file."""
    config = configured(layout, DEBIAN)
    config.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config, 1234, 4321)
    before, facts = snapshot(config.parent), config.stat()
    prepare(layout, intend_preparation(layout))
    found = config.stat()
    assert (facts.st_mode, facts.st_uid, facts.st_gid) == (found.st_mode, found.st_uid, found.st_gid)
    undo(Path(layout.paths.state))
    assert before == snapshot(config.parent)


def test_a_file_that_finds_the_drop_in_already_is_not_ours(layout: NodeLayout) -> None:
    """Where the user's own import finds the drop-in, the main file is neither written nor remembered."""
    config = configured(layout, f'imports = ["{{etc}}/more.d/*.toml"]\n{DEBIAN}'.replace("{etc}", "/etc/containerd"))
    etc = config.parent
    config.write_text(config.read_text().replace("/etc/containerd", str(etc)))
    prepare(layout, intend_preparation(layout))
    assert [str(etc / "more.d/99-sluice.toml")] == list(read_record(Path(layout.paths.state)).files)
    config.write_text(config.read_text() + "# mine\n")
    mine = snapshot(etc)["config.toml"]
    undo(Path(layout.paths.state))
    assert {"config.toml": mine} == snapshot(etc)


def test_an_import_taken_out_by_hand_is_put_in_again(layout: NodeLayout) -> None:
    """Its owner removed our entry and wrote more: prepare adds it again, and undo leaves the owner's last text."""
    config = configured(layout, DEBIAN)
    prepare(layout, intend_preparation(layout))
    config.write_text(f"# all mine\n{DEBIAN}")
    mine = snapshot(config.parent)["config.toml"]
    prepare(layout, intend_preparation(layout))
    assert [] == found(layout)
    undo(Path(layout.paths.state))
    assert {"config.toml": mine} == snapshot(config.parent)


def test_an_import_that_cannot_be_taken_out_is_refused_with_its_line(layout: NodeLayout) -> None:
    """Changed to the drop-in's own name, without which containerd would not start: undo says which line, does nothing,
    and goes on once that is done."""
    config = configured(layout, DEBIAN)
    prepare(layout, intend_preparation(layout))
    ours = f"{config.parent}/conf.d/99-sluice.toml"
    config.write_text(config.read_text().replace(f"{config.parent}/conf.d/*.toml", ours))
    before = snapshot(config.parent)
    with pytest.raises(NodeRefused) as caught:
        undo(Path(layout.paths.state))
    assert f'remove "{ours}" from line 2 (imports = ["{ours}"]) by hand' in caught.value.message
    assert before == snapshot(config.parent)
    config.write_text(config.read_text().replace(f'imports = ["{ours}"]\n', ""))
    undo(Path(layout.paths.state))
    assert DEBIAN == config.read_text()


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

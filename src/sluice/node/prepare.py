"""``sluice node prepare``: give containerd its ``config_path``, once, by a drop-in file; ``undo`` takes it back.

The drop-in holds the whole table of the plugin that pulls images, because containerd 1.x replaces a plugin's table by
that of a later file instead of merging the two. What comes of it is judged by containerd itself before anything is
written: with the drop-in, its configuration has to be the one without it but for ``config_path``. A later change of
that plugin's table in another file has no effect on containerd 1.x, which ``preflight`` finds; running ``prepare``
again takes it over. The main file is its owner's: one entry in its ``imports`` is all of it that is ours.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import tomli_w

from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.apply import Intent, apply_intent
from sluice.node.containerd import (
    PROGRAM,
    Table,
    config_files,
    dump_config,
    images_plugin,
    installed_version,
    read_table,
    registry_table,
)
from sluice.node.drop_in import DROP_IN_DIRECTORY, DROP_IN_NAME, sections
from sluice.node.files import PUBLIC_MODE, FileSpec
from sluice.node.found import FileState, read_state
from sluice.node.imports import CannotChange, ImportEdit, put_in
from sluice.node.plan import Plan
from sluice.node.record import read_record
from sluice.node.serialize import dump_toml


def intend_preparation(layout: NodeLayout, program: str = PROGRAM) -> Intent:
    """The files that set ``config_path``, judged by containerd. Nothing is written.

    Raises ConfigInvalid where containerd is missing, does not accept its present files or those to be, or where
    something has to be removed by hand first.
    """
    version = installed_version(program)
    if version is None:
        raise ConfigInvalid("containerd is not installed, or does not tell its version: install it first")
    main = Path(layout.paths.containerd_config)
    dump_config(main, program)  # what it does not accept today is no ground to build on
    text = _text(main)
    if not tomllib.loads(text):
        text = tomli_w.dumps({"version": 3 if version >= (2, 0, 0) else 2}) + text
    table = tomllib.loads(text)
    if int(table.get("version", 1)) < 2:
        raise ConfigInvalid(
            f"{main} is of version 1, which cannot set config_path: "
            "run containerd config migrate, and put its output there"
        )
    drop_in, text, edit = _place(main, text)
    content = _drop_in(layout, _Trial(main, text, drop_in, program), table)
    files = {str(drop_in): FileSpec(content)}
    state = Path(layout.paths.state)
    known = read_record(state).files.get(str(main))
    if edit is not None or known is not None:
        edit = edit or (known.edit if known is not None else None)
        files[str(main)] = FileSpec(text.encode(), _mode(main), edit=edit)
    return Intent(state, files, layout.paths.containerd_hosts, part="runtime", force=True)


def prepare(layout: NodeLayout, intent: Intent, program: str = PROGRAM) -> Plan:
    """Write them. Raises NodeRefused, ConfigInvalid or StorageFull, with everything as it was."""
    plan = apply_intent(intent)
    try:
        _require_taken(layout, program)
    except ConfigInvalid:
        apply_intent(replace(intent, files={}))
        raise
    return plan


def _require_taken(layout: NodeLayout, program: str) -> None:
    found = registry_table(dump_config(Path(layout.paths.containerd_config), program)).get("config_path")
    if found != layout.paths.containerd_hosts:
        raise ConfigInvalid(f"containerd takes config_path {found!r} from its files; nothing was changed")


class _Trial:
    """containerd's judgement of files that are not in place yet: copies of them, in a directory of their own."""

    def __init__(self, main: Path, text: str, drop_in: Path, program: str) -> None:
        self._main, self._text, self._drop_in, self._program = main, text, drop_in, program
        self.tables = [read_table(path) for path in config_files(main) if path != drop_in]

    def dump(self, content: bytes | None) -> Table:
        """What containerd makes of all of them, with or without a drop-in."""
        with tempfile.TemporaryDirectory(prefix="sluice-prepare-") as directory:
            aside = Path(directory)
            for path in self._drop_in.parent.glob("*"):
                if path.is_file() and path != self._drop_in:
                    shutil.copy(path, aside / path.name)
            if content is not None:
                (aside / self._drop_in.name).write_bytes(content)
            (aside / "main").mkdir()
            config = aside / "main" / self._main.name
            table = tomllib.loads(self._text)
            table["imports"] = [self._moved(str(one), aside) for one in table["imports"]]
            config.write_text(tomli_w.dumps(table), encoding="utf-8")
            return dump_config(config, self._program)

    def _moved(self, pattern: str, aside: Path) -> str:
        absolute = os.path.join(self._main.parent, pattern)
        ours = os.path.dirname(absolute) == str(self._drop_in.parent)
        return f"{aside}/{os.path.basename(absolute)}" if ours else absolute


def _drop_in(layout: NodeLayout, trial: _Trial, table: Table) -> bytes:
    plugin = images_plugin(table)
    without = trial.dump(None)
    _refuse_legacy(layout, without)
    _own_registry(without)["config_path"] = layout.paths.containerd_hosts
    for section in sections(trial.tables, plugin):
        registry = {**section.get("registry", {}), "config_path": layout.paths.containerd_hosts}
        document = {"version": table["version"], "plugins": {plugin: {**section, "registry": registry}}}
        content = dump_toml(document, DROP_IN_NAME)
        if _same(trial.dump(content), without):
            return content
    raise ConfigInvalid(
        f"a drop-in beside {layout.paths.containerd_config} would change more than config_path: set it to "
        f'"{layout.paths.containerd_hosts}" in [plugins."{plugin}".registry] by hand, and restart containerd'
    )


def _own_registry(dump: Table) -> Table:
    """The dump's own ``registry`` table, to be changed in place."""
    return dump.setdefault("plugins", {}).setdefault(images_plugin(dump), {}).setdefault("registry", {})  # type: ignore[no-any-return]


def _refuse_legacy(layout: NodeLayout, dump: Table) -> None:
    registry = registry_table(dump)
    tls = [name for name, one in registry.get("configs", {}).items() if isinstance(one, dict) and one.get("tls")]
    for key, names in (("mirrors", list(registry.get("mirrors", {}))), ("configs with tls", tls)):
        if names:
            raise ConfigInvalid(
                f"{layout.paths.containerd_config} has registry.{key} for {', '.join(sorted(names))}, beside which "
                "containerd refuses config_path: list these registries in the layout, and remove the tables"
            )


def _same(one: Table, other: Table) -> bool:
    left, right = ({key: value for key, value in table.items() if key != "imports"} for table in (one, other))
    return left == right


def _place(main: Path, text: str) -> tuple[Path, str, ImportEdit | None]:
    """Where the drop-in goes, and the main file's text with an import that finds it there, ours where it had none."""
    table = tomllib.loads(text)
    for pattern in map(str, table.get("imports", [])):
        directory = os.path.dirname(pattern)  # a relative one with a * is relative to wherever containerd was started
        if (
            os.path.isabs(pattern)
            and not _is_pattern(directory)
            and fnmatch.fnmatch(DROP_IN_NAME, os.path.basename(pattern))
        ):
            return Path(directory) / DROP_IN_NAME, text, None
    drop_in = main.parent / DROP_IN_DIRECTORY / DROP_IN_NAME
    try:
        changed, edit = put_in(text, f"{drop_in.parent}/*.toml", str(drop_in))
    except CannotChange as error:
        raise ConfigInvalid(f"{main} has an imports that is hard to change: {error}") from None
    return drop_in, changed, edit


def _is_pattern(directory: str) -> bool:
    """Whether a directory is no single one."""
    return any(mark in directory for mark in "*?[")


def _text(path: Path) -> str:
    """With the ends of lines as they are."""
    return path.read_bytes().decode() if path.exists() else ""


def _mode(path: Path) -> int:
    state = read_state(str(path))
    return state.mode if isinstance(state, FileState) else PUBLIC_MODE

"""The containerd of a node: which version it is, what its configuration amounts to, and whether it has read it.

``preflight`` judges what this reads, ``prepare`` changes it. containerd itself is asked (``config dump``), since only
it knows its defaults and how it puts imports together; without it the files are read as it would.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.errors import ConfigInvalid, Unavailable
from sluice.node.drop_in import DROP_IN_NAME, hidden_keys

PROGRAM = "containerd"
ASK_S = 20.0
"""How long containerd may take to say something about itself, in seconds."""
RESTART_S = 90.0
SAID_LENGTH_MAX = 400
IMPORTS_MAX = 100
MERGES = (2, 0, 0)
"""From this version on a plugin's table is merged with that of a later file; before, the later one replaces it."""
Table = dict[str, Any]
_VERSION = re.compile(r"\sv?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class ContainerdFacts:
    """``version`` is None where it names none; ``config`` is what it would run on, with ``problem`` None, or else
    nothing and why. ``asked``: containerd itself said so. ``stale``: it runs since before its files were changed.
    ``hidden``: keys of the images plugin about which other files say something else than ``prepare``'s drop-in."""

    version: tuple[int, int, int] | None
    config: Table
    problem: str | None
    asked: bool
    stale: bool
    hidden: tuple[str, ...] = ()


def read_containerd(config: Path, program: str = PROGRAM) -> ContainerdFacts:
    """Ask and read. Raises nothing for a configuration that is wrong: ``problem`` says so."""
    version = installed_version(program)
    try:
        dump = dump_config(config, program) if version is not None else merged_config(config)
        hidden = _hidden(config, version)
    except ConfigInvalid as error:
        return ContainerdFacts(version, {}, error.message, version is not None, stale=False)
    return ContainerdFacts(version, dump, None, version is not None, _runs_on_older(config), hidden)


def installed_version(program: str = PROGRAM) -> tuple[int, int, int] | None:
    """The version of the program that would start; None where there is none or it does not say."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=ASK_S, check=False).stdout
        if found := _VERSION.search(said):
            return int(found[1]), int(found[2]), int(found[3])
    return None


def dump_config(config: Path, program: str = PROGRAM) -> Table:
    """What containerd makes of a file and its imports. Raises ConfigInvalid with its own words."""
    # Without a file its defaults hold; a dump would be of the file at the usual place.
    command = (
        [program, "--config", str(config), "config", "dump"] if config.exists() else [program, "config", "default"]
    )
    try:
        done = subprocess.run(command, capture_output=True, timeout=ASK_S, check=False)
        if done.returncode == 0:
            return tomllib.loads(done.stdout.decode())
        said = done.stderr.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        said = str(error)
    raise ConfigInvalid(f"containerd does not accept {config}: {' '.join(said.split())[-SAID_LENGTH_MAX:]}")


def restart_containerd() -> None:
    """By systemd; containers run on. Raises Unavailable."""
    try:
        done = subprocess.run(
            ["systemctl", "restart", "containerd"], capture_output=True, text=True, timeout=RESTART_S, check=False
        )
        said = None if done.returncode == 0 else done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said is not None:
        raise Unavailable(f"containerd was not restarted ({' '.join(said.split())}): restart it yourself")


def merged_config(config: Path) -> Table:
    """What the files say together, read as containerd 1.x does: a plugin's table is that of the last file with one.

    Raises ConfigInvalid for a file that cannot be read.
    """
    merged: Table = {}
    for table in (read_table(path) for path in config_files(config)):
        plugins = {**merged.get("plugins", {}), **table.get("plugins", {})}
        merged = {**merged, **table, "plugins": plugins}
    return merged


def config_files(config: Path) -> list[Path]:
    """The file and its imports, in containerd's order; an import that matches nothing is none."""
    if not config.exists():
        return []
    found, waiting = [config], [config]
    while waiting and len(found) < IMPORTS_MAX:
        above = waiting.pop(0)
        for pattern in read_table(above).get("imports", []):
            for name in sorted(glob.glob(os.path.join(above.parent, str(pattern)))):
                if Path(name) not in found:
                    found.append(Path(name))
                    waiting.append(Path(name))
    return found


def read_table(path: Path) -> Table:
    """One TOML file. Raises ConfigInvalid."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"{path} cannot be read as TOML: {error}") from None


def images_plugin(config: Table) -> str:
    """Which plugin's ``registry`` table says where images come from, by the configuration's version."""
    return "io.containerd.cri.v1.images" if int(config.get("version", 1)) >= 3 else "io.containerd.grpc.v1.cri"


def registry_table(config: Table) -> Table:
    """That table; empty where there is none."""
    plugin = config.get("plugins", {}).get(images_plugin(config), {})
    table = plugin.get("registry", {}) if isinstance(plugin, dict) else {}
    return table if isinstance(table, dict) else {}


def _hidden(config: Path, version: tuple[int, int, int] | None) -> tuple[str, ...]:
    tables = {path: read_table(path) for path in config_files(config)}
    ours = [path for path in tables if path.name == DROP_IN_NAME]
    if not ours or not config.exists():
        return ()
    others = [table for path, table in tables.items() if path not in ours]
    merges = version is not None and version >= MERGES
    return hidden_keys(tables[ours[-1]], others, images_plugin(tables[config]), merges=merges)


def _runs_on_older(config: Path) -> bool:
    """Whether a containerd that was started on this file has not seen its last change."""
    with contextlib.suppress(OSError, ConfigInvalid):
        changed = max((path.stat().st_mtime for path in config_files(config)), default=0.0)
        return any(started < changed for started in _started(config))
    return False


def _started(config: Path) -> Iterator[float]:
    boot = float(
        next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")).split()[1]
    )
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if os.path.basename(words[0]) != b"containerd" or _config_of(words) != str(config):
                continue
            ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])
            yield boot + 1 + ticks / os.sysconf("SC_CLK_TCK")  # boot is known to the second


def _config_of(words: list[bytes]) -> str:
    for at, word in enumerate(words):
        name, equals, value = os.fsdecode(word).partition("=")
        if name in {"--config", "-config", "-c", "--c"}:
            return value if equals else os.fsdecode(words[at + 1]) if at + 1 < len(words) else ""
    return "/etc/containerd/config.toml"

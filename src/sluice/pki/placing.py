"""A certificate, its key and the CA to trust, put where a program reads them: all three at one instant.

``cli.pki`` writes what it issues through this. Files that are replaced one after the other do not match in between, and
a program that starts just then refuses them. So the names in the directory are links through ``current``, which is
turned to a new directory by one rename, as Kubernetes does with its secrets.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from sluice.errors import ConfigInvalid
from sluice.pki.durable import PRIVATE_MODE, PUBLIC_MODE, errors_named, make_directory, sync_directory, write_durably

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
_CURRENT = "current"


def place(directory: Path, certificate: str, key: str, authority: str) -> None:
    """Put the three (PEM) into ``directory`` as ``tls.crt``, ``tls.key`` (0600) and ``ca.crt``; on disk on return.

    Raises ConfigInvalid where something else has one of these names or the directory cannot be written, StorageFull.
    """
    contents = {CERTIFICATE: certificate, KEY: key, AUTHORITY: authority}
    refuse_foreign(directory)
    make_directory(directory)
    with errors_named(directory, "written"):
        _turn(directory, _written(directory, contents))
        for name in contents:
            _link(directory / name, f"{_CURRENT}/{name}")
        sync_directory(directory)
        current = os.readlink(directory / _CURRENT)
        for old in directory.glob(".set-*"):
            if old.is_symlink():
                old.unlink()
            elif old.name != current:
                shutil.rmtree(old)


def refuse_foreign(directory: Path) -> None:
    """Raise ConfigInvalid where something that ``place`` has not written has one of its names."""
    for name in (CERTIFICATE, KEY, AUTHORITY, _CURRENT):
        path = directory / name
        if path.exists() and not path.is_symlink():
            raise ConfigInvalid(f"out {path} is not what `sluice pki issue` writes; move it away or give another --out")


def _written(directory: Path, contents: Mapping[str, str]) -> Path:
    folder = directory / f".set-{secrets.token_hex(8)}"
    make_directory(folder)
    for name, content in contents.items():
        write_durably(folder / name, content.encode(), mode=PRIVATE_MODE if name == KEY else PUBLIC_MODE)
    return folder


def _turn(directory: Path, folder: Path) -> None:
    _link(directory / _CURRENT, folder.name)
    sync_directory(directory)


def _link(path: Path, target: str) -> None:
    if path.is_symlink() and os.readlink(path) == target:
        return
    aside = path.with_name(f".set-{secrets.token_hex(8)}.link")
    aside.symlink_to(target)
    aside.rename(path)

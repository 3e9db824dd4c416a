"""What a rendered file is: the type between the renderers (``hosts``, ``balancer``, …) and ``plan``. PURE.

A renderer turns a layout into ``Files``: absolute paths to whole contents. It touches nothing, and whatever it writes
it has parsed back and compared with what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sluice.node.imports import ImportEdit

PUBLIC_MODE, PRIVATE_MODE = 0o644, 0o600


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file as it should be. ``early``: others refer to it, so it is written before them and removed after them (CA
    files, which containerd fails over when they are missing). ``check``: a program that judges it first, by name.
    ``edit``: all of it that is ours; the rest, its mode and its owner are somebody else's, and stay theirs."""

    content: bytes
    mode: int = PUBLIC_MODE
    early: bool = False
    check: str | None = None
    edit: ImportEdit | None = None


Files = Mapping[str, FileSpec]
"""By absolute path."""

"""The files that CRI-O and podman read beside ours, for ``containers_check``."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.containers_check import DROP_INS
from sluice.pki.durable import read_bounded

FILE_BYTES_MAX = 1 << 20


def read_registries(layout: NodeLayout) -> dict[str, bytes]:
    """``registries.conf`` and the drop-ins by path; those that cannot be read are left out."""
    root = Path(layout.paths.containers)
    found: dict[str, bytes] = {}
    for path in (root / "registries.conf", *sorted((root / DROP_INS).glob("*.conf"))):
        with contextlib.suppress(ConfigInvalid):
            raw = read_bounded(path, FILE_BYTES_MAX)
            if raw is not None:
                found[str(path)] = raw
    return found

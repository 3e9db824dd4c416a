"""Taking a laboratory away, whatever state it is in: processes, networks and mounts, then control groups, then files.

The first three go with one process (``ground``). Control groups are files of the kernel that nobody else removes; they
carry the laboratory's name.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from sluice.lab.ground import end
from sluice.lab.state import LabDirectory

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_S = 5.0
"""How long the kernel may take to let go of a control group whose processes have ended, in seconds."""


def take_down(directory: LabDirectory) -> bool:
    """Remove everything; whether there was anything. Raises Unavailable where a process does not go."""
    found = end(directory.path)
    remove_cgroups(directory.cgroup)
    found = directory.is_ours or found
    directory.remove()
    return found


def remove_cgroups(name: str) -> None:
    """Remove the laboratory's control groups in every hierarchy, as soon as they are empty."""
    roots = [CGROUPS, *(one for one in CGROUPS.glob("*") if one.is_dir())]
    deadline = time.monotonic() + CGROUP_S
    for root in roots:
        group = root / name
        while group.is_dir() and time.monotonic() < deadline:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            if group.is_dir():
                time.sleep(0.02)

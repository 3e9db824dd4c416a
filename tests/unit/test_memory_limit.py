"""How much memory a process has: the machine's, or its container's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sluice.store.memory_limit import memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", f"{64 * MIB}\n", 64 * MIB),
        ("memory.max", "max\n", MACHINE),
        ("memory.max", "", MACHINE),
        ("memory/memory.limit_in_bytes", f"{64 * MIB}\n", 64 * MIB),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", MACHINE),
        ("memory.current", f"{MIB}\n", MACHINE),
    ],
)
def test_the_lesser_of_machine_and_container(tmp_path: Path, name: str, text: str, expected: int) -> None:
    """Either version's file counts where it has a number that is less than what the machine has."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert expected == memory_bytes(tmp_path)


def test_without_containers_it_is_the_machine(tmp_path: Path) -> None:
    """No such files: all of it."""
    assert MACHINE == memory_bytes(tmp_path / "none")

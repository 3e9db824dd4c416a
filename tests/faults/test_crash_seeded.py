"""The crash suite against servers with a defect: it would notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import test_crash_cache as cache
from faults.seeded import SeededServer
from faults.test_crash import crash

KILLS = 6


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("no-digest-check", "answered 201 instead of 400"),
        ("early-acknowledgement", ""),  # shows in many ways, the first of which is anybody's guess
        ("row-before-file", "is damaged"),
        ("false-offset", "upload "),
        ("stale-manifests", "allowed were"),
    ],
)
def test_the_crash_suite_finds_a_seeded_defect(tmp_path: Path, defect: str, complaint: str) -> None:
    """Within a few kills a server with this defect breaks a promise that the ledger holds."""
    server = SeededServer(tmp_path / "data", defect=defect)
    try:
        ledger = crash(server, KILLS)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
    assert [one for one in ledger.violations if complaint in one] != []


@pytest.mark.parametrize(
    ("defect", "complaint"),
    [
        ("no-budget", "bytes"),
        ("forgotten-pins", "'pinned': 0"),
        ("row-before-file", "has a row of"),
    ],
)
def test_the_crash_suite_of_the_cache_finds_a_seeded_defect(tmp_path: Path, defect: str, complaint: str) -> None:
    """Within a few kills a cache with this defect breaks a promise about its rows, its files or its budget."""
    with cache.flags() as flags:
        lives = cache.lives_of(SeededServer(tmp_path / "data", *flags, defect=defect), KILLS)
    assert [one for one in lives.violations if complaint in one] != []

"""Invariant 1 under SIGKILL: what was acknowledged is there and whole, nothing else is ever served.

One data directory lives through all kills. A kill comes at a random moment of the traffic, and sometimes another one
while the server starts.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from faults.ledger import Ledger
from faults.traffic import Traffic
from faults.wire import Wire
from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.server import SluiceServer

SHORT_KILLS = 8
LONG_KILLS = 200
TRAFFIC_S = 1.2  # at most, between start and kill
START_S = 1.5  # about what a start takes


def survive(server: SluiceServer, ledger: Ledger, seed: int) -> None:
    """One life: start, check everything, traffic, SIGKILL. The server runs from here to there without any repair."""
    randomness = random.Random(seed)
    if randomness.random() < 0.2:
        kill_while_starting(server, randomness.uniform(0, START_S))
    server.start()
    check(server, ledger)
    traffic = Traffic(server, ledger, seed)
    traffic.start()
    time.sleep(randomness.uniform(0.02, TRAFFIC_S))
    traffic.kill()


def kill_while_starting(server: SluiceServer, after_s: float) -> None:
    with server.log.open("ab") as log, subprocess.Popen(server.command(), stdout=log, stderr=log) as process:
        time.sleep(after_s)
        process.kill()


def check(server: SluiceServer, ledger: Ledger) -> None:
    with Wire(server) as wire:
        ledger.inspect(wire)
    report = call(server.data / SOCKET_NAME, "fsck", {"repair": False})
    assert isinstance(report, dict)
    if not report["clean"]:
        ledger.violate(f"fsck: {report}")


def crash(server: SluiceServer, kills: int) -> Ledger:
    """So many lives, or fewer where a promise is broken, and a last start to look."""
    ledger = Ledger()
    first = int(os.environ.get("CRASH_SEED", str(random.randrange(1 << 32))))
    print(f"CRASH_SEED={first}")  # shown by pytest where the test fails
    for life in range(kills):
        survive(server, ledger, first + life)
        if ledger.violations:
            return ledger
    server.start()
    check(server, ledger)
    return ledger


def assert_survives(data: Path, kills: int) -> None:
    server = SluiceServer(data, tls=False)
    try:
        ledger = crash(server, kills)
        assert ledger.violations == []
        assert server.stop() == 0
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
    print(f"{kills} kills, {ledger.acknowledged} writes acknowledged, {ledger.resumed} uploads resumed")
    # The suite proves nothing where the traffic did nothing.
    assert ledger.acknowledged >= 10 * kills
    assert "Traceback" not in server.log.read_text("utf-8", "replace")


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    """Whatever was acknowledged before a kill is there and whole after it, and the rest is absent or resumable."""
    assert_survives(tmp_path / "data", SHORT_KILLS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost_by_two_hundred_kills(tmp_path: Path) -> None:
    """The same for 200 kills on one data directory."""
    assert_survives(tmp_path / "data", LONG_KILLS)

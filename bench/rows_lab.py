"""Row 22: how long a laboratory of five nodes takes to come up, every containerd, balancer and replica ready."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.measure import PER_START, Bar, Row, Sample, Series, Work, show_progress
from bench.site import Site
from bench.wire import BenchError

LAB = "laboratory"
UP_LIMIT_S, TIMEOUT_S = 30, 300


def laboratory(site: Site) -> list[Row]:
    """Row 22, with everything installed already. Needs root, as the laboratory does."""
    samples = []
    for number in range(site.scale.rounds):
        directory = site.scratch(f"lab-{number}")
        try:
            elapsed_s = _timed("up", directory)
        finally:
            _timed("down", directory)
        show_progress(f"  lab up {number + 1}/{site.scale.rounds}: {elapsed_s:.1f} s")
        samples.append(Sample(Work(elapsed_s, 1), 0))
    title = "lab up, 3 control planes and 2 workers"
    bars = (Bar(LAB, UP_LIMIT_S, at_most=True),)
    return [Row("22", title, "s", PER_START, (Series(LAB, tuple(samples), 0),), bars, "the whole command")]


def _timed(command: str, directory: Path) -> float:
    started = time.perf_counter()
    words = [sys.executable, "-m", "sluice", "lab", command, "--directory", str(directory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise BenchError(f"lab {command} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started

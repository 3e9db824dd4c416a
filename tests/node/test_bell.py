"""The bell that an agent sleeps by, with real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from sluice.node.bell import RINGS_MAX, Bell

LONG_S, SHORT_S = 60.0, 0.01


@pytest.fixture
def bell() -> Iterator[Bell]:
    with Bell() as one:
        yield one


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def test_a_ring_ends_the_next_sleep(bell: Bell) -> None:
    """However often it rang, one sleep ends; the next one lasts its time."""
    for _ in range(3):
        bell.ring()
    bell.sleep(LONG_S)
    before = time.monotonic()
    bell.sleep(SHORT_S)
    assert time.monotonic() - before >= SHORT_S


def test_a_signal_handler_may_ring(bell: Bell) -> None:
    """A signal that comes in the middle of a sleep ends it by way of the bell."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: bell.ring())
    try:
        signal.setitimer(signal.ITIMER_REAL, SHORT_S)
        bell.sleep(LONG_S)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ringing_without_end_does_no_harm(bell: Bell) -> None:
    """A line that is full takes no more, and nobody waits for it."""
    for _ in range(20 * RINGS_MAX):
        bell.ring()
    bell.sleep(LONG_S)


def test_the_end_of_a_process_ends_the_sleep(bell: Bell) -> None:
    """It is known as gone from then on, and no later sleep is cut short by it."""
    process = sleeper()
    bell.watch(process.pid)
    bell.watch(process.pid)
    watched = bell.gone
    process.kill()
    bell.sleep(LONG_S)
    assert (False, True) == (watched, bell.gone)
    process.wait()
    before = time.monotonic()
    bell.sleep(SHORT_S)
    assert time.monotonic() - before >= SHORT_S


def test_another_process_takes_its_place(bell: Bell) -> None:
    """The end of one that is watched no longer means nothing, and that of the present one does."""
    first, second = sleeper(), sleeper()
    bell.watch(first.pid)
    bell.watch(second.pid)
    first.kill()
    first.wait()
    bell.sleep(SHORT_S)
    seen = [bell.gone]
    second.kill()
    bell.sleep(LONG_S)
    seen.append(bell.gone)
    second.wait()
    bell.watch(None)
    assert [False, True, False] == [*seen, bell.gone]


def test_a_process_that_has_ended_is_gone_at_once(bell: Bell) -> None:
    """Between the question that named it and the watch it may have ended."""
    process = sleeper()
    process.kill()
    process.wait()
    bell.watch(process.pid)
    assert bell.gone


def test_a_ring_after_the_end_is_nothing() -> None:
    """A signal may still come when the sleeper has left."""
    with Bell() as bell:
        pass
    bell.ring()


def test_it_leaves_no_descriptor() -> None:
    """Whatever was watched, a closed bell has closed all of its own."""
    before = os.listdir("/proc/self/fd")
    process = sleeper()
    with Bell() as bell:
        bell.watch(process.pid)
    process.kill()
    process.wait()
    assert before == os.listdir("/proc/self/fd")

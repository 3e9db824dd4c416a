"""Rounds, and what they add up to: samples per peer, the row they make, the bars that the row must reach.

Rounds are interleaved (A B C, A B C, …): a machine that slows down for a while slows everyone. The pure part of the
harness; ``report`` renders what this holds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.peers import Peer
from bench.wire import BenchError


@dataclass(frozen=True)
class Work:
    """One round at one peer: the figure, how much was done (in the row's unit of cost), the client's CPU seconds."""

    value: float
    amount: float
    client_cpu_s: float | None = None


@dataclass(frozen=True)
class Sample:
    """A round's work and the CPU seconds that the server took for it."""

    work: Work
    server_cpu_s: float


@dataclass(frozen=True)
class Series:
    """All rounds of one peer. ``peak_bytes``: peak resident memory over the row."""

    name: str
    samples: tuple[Sample, ...]
    peak_bytes: int

    @property
    def values(self) -> list[float]:
        """The figures, in the order of the rounds."""
        return [sample.work.value for sample in self.samples]

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.values)

    @property
    def server_cost_s(self) -> float:
        """Server CPU seconds per unit of work."""
        return sum(sample.server_cpu_s for sample in self.samples) / self._amount

    @property
    def client_cost_s(self) -> float | None:
        """Client CPU seconds per unit of work, where the client was measured."""
        costs = [sample.work.client_cpu_s for sample in self.samples]
        known = [cost for cost in costs if cost is not None]
        return sum(known) / self._amount if known and len(known) == len(costs) else None

    @property
    def _amount(self) -> float:
        return sum(sample.work.amount for sample in self.samples)


@dataclass(frozen=True)
class Cost:
    """How CPU is shown: ``label`` names the unit, ``scale`` turns seconds per unit of work into it."""

    label: str
    scale: float


PER_GIB = Cost("s/GiB", 1.0)
PER_REQUEST = Cost("µs/request", 1e6)
PER_IMAGE = Cost("ms/image", 1e3)
PER_START = Cost("s/start", 1.0)
PER_PULL = Cost("ms/pull", 1e3)
PER_SECOND = Cost("s/s", 1.0)


@dataclass(frozen=True)
class Bar:
    """What ``subject`` must reach.

    With ``against``: the ratio of the two medians, or with ``more`` their difference in the row's unit. Without: the
    worst of ``subject``'s own figures, in the row's unit. ``suffices``: a median of ``subject`` that is good enough
    whatever ``against`` has (of a bar with ``at_most``).
    """

    subject: str
    limit: float
    against: str | None = None
    at_most: bool = False
    more: bool = False
    suffices: float | None = None


@dataclass(frozen=True)
class Verdict:
    """A bar, what came out, and whether that meets it."""

    bar: Bar
    reached: float
    median: float

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the bar."""
        if self.bar.suffices is not None and self.median <= self.bar.suffices:
            return True
        return self.reached <= self.bar.limit if self.bar.at_most else self.reached >= self.bar.limit


@dataclass(frozen=True)
class Row:
    """One line of work, measured at several peers. ``number`` orders and names it; rows with a letter inform."""

    number: str
    title: str
    unit: str
    cost: Cost
    series: tuple[Series, ...]
    bars: tuple[Bar, ...] = ()
    note: str = ""

    def verdicts(self) -> list[Verdict]:
        """The bars whose peers were measured, judged."""
        by_name = {series.name: series for series in self.series}
        return [
            _judge(bar, by_name)
            for bar in self.bars
            if bar.subject in by_name and (bar.against or bar.subject) in by_name
        ]


def measure(
    peers: Sequence[Peer], rounds: int, work: Callable[[Peer], Work], prepare: Callable[[int], None] | None = None
) -> tuple[Series, ...]:
    """Run ``work`` at each peer in turn, ``rounds`` times; ``prepare`` runs before each round, off the clock."""
    for peer in peers:
        peer.process.reset_peak()
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        if prepare is not None:
            prepare(number)
        for peer in peers:
            samples[peer.name].append(_sample(peer, work))
            show_progress(f"  round {number + 1}/{rounds} {peer.name}: {samples[peer.name][-1].work.value:,.1f}")
    return tuple(Series(peer.name, tuple(samples[peer.name]), peer.process.peak_bytes()) for peer in peers)


def show_progress(line: str) -> None:
    """The story goes to standard error; standard output is for the result."""
    print(line, file=sys.stderr, flush=True)


def _sample(peer: Peer, work: Callable[[Peer], Work]) -> Sample:
    before_s = peer.process.cpu_s()
    done = work(peer)
    if peer.process.ended:
        raise BenchError(f"{peer.name} ended under load; its log ends:\n{peer.process.last_words()}")
    return Sample(done, peer.process.cpu_s() - before_s)


def _judge(bar: Bar, by_name: dict[str, Series]) -> Verdict:
    subject = by_name[bar.subject]
    if bar.against is None:
        return Verdict(bar, max(subject.values) if bar.at_most else min(subject.values), subject.median)
    other = by_name[bar.against].median
    return Verdict(bar, subject.median - other if bar.more else subject.median / other, subject.median)

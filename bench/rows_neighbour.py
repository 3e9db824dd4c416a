"""Row 16: what etcd on the same disk notices of a cache that fills.

Every round has four parts of about the same length: etcd alone, beside Sluice, beside Sluice without its ceiling,
beside docker-registry, each of which begins with an empty directory and fetches the same images from the same upstream.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.caches import (
    NO_CEILING,
    SLUICE_UNCAPPED,
    address,
    await_held,
    registry_before,
    sluice_before,
    upstream_registry,
    wanted,
)
from bench.content import MIB, Blob, random_blob
from bench.etcd import PUTS_PER_S, VALUE_BYTES, Etcd, between, quantile
from bench.fill import hold_blob
from bench.measure import PER_GIB, PER_SECOND, Bar, Row, Sample, Series, Work, show_progress
from bench.peers import REGISTRY, SLUICE, Peer, start_sluice
from bench.rows_pull import BLOB_BYTES, GIB
from bench.site import Site, settle

ALONE = "etcd alone"
PUSHED = "Sluice, pushes"
LAYERS = 8
ALONE_S = 12
AT_ONCE = 2
WAL_P99_MS = 10.0


def etcd(site: Site) -> list[Row]:
    """Row 16, and as row 16b what the caches brought in meanwhile."""
    size = BLOB_BYTES // site.scale.shrink
    blobs = [random_blob(site.scratch(f"neighbour{number}"), size) for number in range(LAYERS)]
    found = _Found()
    neighbour = Etcd(site.scratch("etcd"))
    try:
        with upstream_registry(site, "neighbour-upstream") as upstream:
            for blob in blobs:
                hold_blob(site.clients, upstream, blob)
            for number in range(site.scale.rounds):
                _alone(site, neighbour, found)
                for name, start in _starts(site, address(upstream)).items():
                    _beside(site, neighbour, found, name, start, blobs)
                show_progress(f"  round {number + 1}/{site.scale.rounds}: {found.last()}")
    finally:
        neighbour.process.stop()
    title = f"etcd's WAL fsync p99 beside a fill of {LAYERS} layers of {size // MIB} MiB"
    bars = (Bar(SLUICE, 2, ALONE, at_most=True, suffices=WAL_P99_MS),)
    note = f"{PUTS_PER_S} puts/s of {VALUE_BYTES} bytes; {AT_ONCE} layers at once"
    return [
        Row("16", title, "ms", PER_SECOND, found.series(found.waits), bars, note),
        Row("16b", "what was written meanwhile", "MB/s", PER_GIB, found.series(found.rates)),
    ]


@dataclass
class _Found:
    """Samples by name, in the order of their first round: etcd's p99, the rates of the fills, and memory."""

    waits: dict[str, list[Sample]] = field(default_factory=dict)
    rates: dict[str, list[Sample]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def series(self, samples: dict[str, list[Sample]]) -> tuple[Series, ...]:
        return tuple(Series(name, tuple(values), self.peaks.get(name, 0)) for name, values in samples.items())

    def last(self) -> str:
        return ", ".join(f"{name} {values[-1].work.value:.1f} ms" for name, values in self.waits.items())


def _starts(site: Site, upstream: str) -> dict[str, Callable[[], Peer]]:
    starts: dict[str, Callable[[], Peer]] = {}
    if wanted(site, SLUICE):
        starts[SLUICE] = lambda: sluice_before(site, "filled", upstream)
        starts[SLUICE_UNCAPPED] = lambda: sluice_before(site, "filled", upstream, NO_CEILING, SLUICE_UNCAPPED)
        starts[PUSHED] = lambda: start_sluice(site.scratch("filled"), site.identity, name=PUSHED)
    if wanted(site, REGISTRY):
        starts[REGISTRY] = lambda: registry_before(site, "filled", upstream)
    return starts


def _alone(site: Site, neighbour: Etcd, found: _Found) -> None:
    settle()
    with neighbour.load():
        before = neighbour.buckets()
        time.sleep(1 if site.scale.quick else ALONE_S)
        p99_s = quantile(between(before, neighbour.buckets()), 0.99)
    found.waits.setdefault(ALONE, []).append(Sample(Work(p99_s * 1000, ALONE_S), 0.0))


def _beside(
    site: Site, neighbour: Etcd, found: _Found, name: str, start: Callable[[], Peer], blobs: list[Blob]
) -> None:
    """One part of a round, until everything is on the disk."""
    peer = start()
    settle()
    try:
        with neighbour.load():
            before, cpu_s, started = neighbour.buckets(), peer.process.cpu_s(), time.perf_counter()
            for first in range(0, len(blobs), AT_ONCE):
                _move(site, peer, blobs[first : first + AT_ONCE], pushed=name == PUSHED)
            await_held(peer, blobs)
            elapsed_s = time.perf_counter() - started
            p99_s = quantile(between(before, neighbour.buckets()), 0.99)
        cpu_s, moved = peer.process.cpu_s() - cpu_s, sum(blob.size for blob in blobs)
        found.waits.setdefault(name, []).append(Sample(Work(p99_s * 1000, elapsed_s), cpu_s))
        found.rates.setdefault(name, []).append(Sample(Work(moved / 1e6 / elapsed_s, moved / GIB), cpu_s))
        found.peaks[name] = max(found.peaks.get(name, 0), peer.process.peak_bytes())
    finally:
        peer.process.stop()
        site.discard("filled")


def _move(site: Site, peer: Peer, blobs: list[Blob], *, pushed: bool) -> None:
    if pushed:
        site.clients.push_blobs(peer, blobs)
        return
    for reader in [site.clients.start_discard(peer, blob, 1) for blob in blobs]:
        site.clients.finish_discard(reader)

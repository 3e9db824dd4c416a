"""Rows 6 and 7: memory under many transfers at once, and how long a full index delays the start."""

from __future__ import annotations

import time
from pathlib import Path

from bench.content import MIB, Blob, random_blob
from bench.fill import hold_blob
from bench.index import REPOSITORIES, TAGS_PER_REPOSITORY_MIN, fill_index, repository_name
from bench.measure import PER_GIB, PER_START, Bar, Row, Sample, Series, Work, measure, show_progress
from bench.peers import NGINX, REGISTRY, SLUICE, Peer, await_ready, free_port, sluice_serve, sluice_serves
from bench.process import Process
from bench.rows_pull import GIB
from bench.site import Site, settle
from bench.tls import client_context
from bench.wire import BenchError, Connection

MEMORY_BLOB_BYTES = 64 * MIB
MEMORY_PULLS = 64
MEMORY_PUSHES = 16
MEMORY_LIMIT_MIB = 100
INDEX_BLOBS = 1_000_000
INDEX_TAGS = 100_000
EMPTY, FULL = "empty store", "full index"


def memory(site: Site) -> list[Row]:
    """Row 6: peak resident memory of 64 pulls and 16 pushes at once; of nginx, the pulls alone."""
    servers = site.peers(SLUICE, REGISTRY, NGINX)
    size = MEMORY_BLOB_BYTES // site.scale.shrink
    held = random_blob(site.scratch("held"), size)
    for peer in servers:
        hold_blob(site.clients, peer, held)
    directory = site.scratch("memory")
    directory.mkdir()
    fresh: list[Blob] = []

    def prepare(_: int) -> None:
        fresh[:] = [random_blob(directory / f"blob{number}", size) for number in range(MEMORY_PUSHES)]
        settle()

    series = measure(servers, site.scale.rounds, lambda peer: _memory(site, peer, held, fresh), prepare)
    title = f"peak resident memory, {MEMORY_PULLS} pulls and {MEMORY_PUSHES} pushes at once of {size // MIB} MiB"
    bars = (Bar(SLUICE, MEMORY_LIMIT_MIB, at_most=True),)
    return [Row("6", title, "MiB", PER_GIB, series, bars, "the worst round counts; nginx: pulls only")]


def start(site: Site) -> list[Row]:
    """Row 7: from exec to ``/readyz`` 200 and an open registry, with a full index and with an empty store."""
    blobs, tags = INDEX_BLOBS // site.scale.shrink, INDEX_TAGS // site.scale.shrink
    empty, full = _made(site, "start-empty"), _made(site, "start-full")
    show_progress(f"  writing an index of {blobs:,} blobs and {tags:,} tags")
    fill_index(full, blobs, tags)
    _check_tags(site, full)
    _start(site, empty)
    samples: dict[str, list[Sample]] = {EMPTY: [], FULL: []}
    peaks = {EMPTY: 0, FULL: 0}
    for number in range(site.scale.rounds):
        for name, data in ((EMPTY, empty), (FULL, full)):
            sample, peak = _start(site, data)
            samples[name].append(sample)
            peaks[name] = max(peaks[name], peak)
            show_progress(f"  round {number + 1}/{site.scale.rounds} {name}: {sample.work.value:.3f} s")
    series = tuple(Series(name, tuple(samples[name]), peaks[name]) for name in (EMPTY, FULL))
    title = f"start to ready, index of {blobs:,} blobs and {tags:,} tags"
    return [
        Row(
            "7",
            title,
            "s",
            PER_START,
            series,
            (Bar(FULL, 1.5, EMPTY, at_most=True),),
            "exec to /readyz 200 and a connection accepted",
        )
    ]


def _memory(site: Site, peer: Peer, held: Blob, fresh: list[Blob]) -> Work:
    peer.process.reset_peak()
    pulls = site.clients.start_discard(peer, held, MEMORY_PULLS)
    moved = MEMORY_PULLS * held.size
    if peer.webroot is None:
        site.clients.push_blobs(peer, fresh)
        moved += sum(blob.size for blob in fresh)
    site.clients.finish_discard(pulls)
    return Work(peer.process.peak_bytes() / MIB, moved / GIB)


def _made(site: Site, name: str) -> Path:
    """A data directory as the server itself makes it, so that version marks and layout are its own."""
    data = site.scratch(name)
    data.mkdir(mode=0o700)
    _start(site, data)
    return data


def _start(site: Site, data: Path) -> tuple[Sample, int]:
    port, operations_port = free_port(), free_port()
    command = sluice_serve(data, port, operations_port, site.identity)
    started = time.perf_counter()
    process = Process(command, site.scratch("start.log"))
    try:
        await_ready(process, lambda: sluice_serves(port, operations_port))
        elapsed_s = time.perf_counter() - started
        return Sample(Work(elapsed_s, 1), process.cpu_s()), process.peak_bytes()
    finally:
        process.stop()


def _check_tags(site: Site, data: Path) -> None:
    """Prove that the server sees the generated index: a start over an index that it ignores would be quick too."""
    port, operations_port = free_port(), free_port()
    process = Process(sluice_serve(data, port, operations_port, site.identity), site.scratch("start.log"))
    try:
        await_ready(process, lambda: sluice_serves(port, operations_port))
        connection = Connection(port, client_context(site.identity.certificate))
        path = f"/v2/{repository_name(REPOSITORIES - 1)}/tags/list?n={TAGS_PER_REPOSITORY_MIN}"
        answer = connection.request("GET", path).expect(200)
        connection.close()
        if answer.body.count(b'"tag-') < TAGS_PER_REPOSITORY_MIN:
            raise BenchError(f"the server does not list the generated tags: {answer.body[:300]!r}")
    finally:
        process.stop()

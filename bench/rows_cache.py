"""Rows 12 to 15: what is held, what passes through, and what many fills take in memory."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from bench.caches import (
    address,
    nginx_before,
    sluice_before,
    stopped_after,
    upstream_registry,
    wanted,
)
from bench.content import MIB, Blob, random_blob, random_image
from bench.fill import TAG, hold_blob, hold_image
from bench.load import manifest_path
from bench.measure import PER_GIB, PER_REQUEST, Bar, Row, Sample, Series, Work, measure, show_progress
from bench.peers import NGINX, REGISTRY, REPOSITORY, SLUICE, Peer
from bench.rows_pull import BLOB_BYTES, GIB, PULLS_AT_ONCE, manifests_rate, pull_rate
from bench.site import Site
from sluice.testing.upstreams import GeneratedBlob, UpstreamContent, UpstreamServer

EXPIRED = ("--cache-tag-fresh-s", "0")
ALIVE, DEAD = "upstream alive", "upstream dead"
TAG_CONNECTIONS = 8
HITS = "Sluice, proxy"
FILLS, FILL_BYTES, READERS_PER_FILL = 16, 1024 * MIB, 4
FILLS_LIMIT_MIB = 150
DIRECT = "Sluice, direct"


def stale(site: Site) -> list[Row]:
    """Row 12: pull by tag with its freshness expired, while the upstream answers and while it is dead."""
    image = random_image(site.scratch("stale"), 6, 1024)
    content = UpstreamContent()
    content.hold_manifest(REPOSITORY, image.manifest, tag=TAG)
    with ExitStack() as open_now:
        alive = open_now.enter_context(UpstreamServer(content))
        dying = open_now.enter_context(UpstreamServer(content))
        servers = [
            sluice_before(site, "stale-alive", alive.address, EXPIRED, ALIVE),
            sluice_before(site, "stale-dead", dying.address, EXPIRED, DEAD),
        ]
        for peer in open_now.enter_context(stopped_after(*servers)):
            site.clients.manifests(peer, manifest_path(TAG), 1, TAG_CONNECTIONS)
        dying.stop()
        series = measure(servers, site.scale.rounds, lambda peer: _latency(site, peer))
    bars = (Bar(DEAD, 1.5, ALIVE, at_most=True),)
    title = f"pull by tag, freshness expired, p99 of {TAG_CONNECTIONS} connections"
    return [Row("12", title, "ms", PER_REQUEST, series, bars, "one HEAD in the background, as by default")]


def hits(site: Site) -> list[Row]:
    """Row 13: what is held, in Proxy mode beside Local mode."""
    local = site.peers(SLUICE)
    image = random_image(site.scratch("hit-image"), 6, 1024)
    blob = random_blob(site.scratch("hit-blob"), BLOB_BYTES // site.scale.shrink)
    with (
        upstream_registry(site, "hits-upstream") as upstream,
        stopped_after(sluice_before(site, "hits", address(upstream), name=HITS)) as caches,
    ):
        servers = [*local, *caches]
        for peer in (upstream, *local):
            hold_image(site.clients, peer, image)
            hold_blob(site.clients, peer, blob)
        for peer in servers:
            site.clients.verify(peer, blob)
            site.clients.discard(peer, blob, PULLS_AT_ONCE)
            site.clients.manifests(peer, manifest_path(TAG), 1)
        manifests = measure(servers, site.scale.rounds, lambda peer: manifests_rate(site, peer))
        blobs = measure(servers, site.scale.rounds, lambda peer: pull_rate(site, peer, blob))
    bars = (Bar(HITS, 0.9, SLUICE),)
    title = f"hits in Proxy mode: blob GET {blob.size // MIB} MiB, {PULLS_AT_ONCE} at once"
    return [
        Row("13", "hits in Proxy mode: manifest GET by tag", "requests/s", PER_REQUEST, manifests, bars),
        Row("13b", title, "MiB/s", PER_GIB, blobs, bars, "as row 3"),
    ]


def direct(site: Site) -> list[Row]:
    """Row 14: a blob through Direct mode beside nginx as a reverse proxy, TLS on both sides."""
    blob = random_blob(site.scratch("direct-blob"), BLOB_BYTES // site.scale.shrink)
    origin = next(iter(site.peers(NGINX, REGISTRY, SLUICE)))
    hold_blob(site.clients, origin, blob)
    peers = []
    if wanted(site, SLUICE):
        peers.append(sluice_before(site, "direct", address(origin), ("--mode", "direct"), DIRECT))
    if wanted(site, NGINX):
        peers.append(nginx_before(site, "direct-nginx", origin.port))
    with stopped_after(*peers):
        for peer in peers:
            site.clients.verify(peer, blob)
        series = measure(peers, site.scale.rounds, lambda peer: pull_rate(site, peer, blob, 1))
    title = f"Direct: blob GET {blob.size // MIB} MiB, TLS on both sides"
    return [Row("14", title, "MiB/s", PER_GIB, series, (Bar(DIRECT, 0.5, NGINX),), f"upstream: {origin.name}")]


def fills(site: Site) -> list[Row]:
    """Row 15: peak resident memory of many large fills at once, each with several readers."""
    size = FILL_BYTES // site.scale.shrink
    show_progress(f"  hashing {FILLS} blobs of {size // MIB} MiB")
    content = UpstreamContent()
    given = [GeneratedBlob(size, seed) for seed in range(FILLS)]
    blobs = [Blob(site.directory, str(content.hold_blob(REPOSITORY, one)), size) for one in given]
    samples: list[Sample] = []
    peak = 0
    with UpstreamServer(content) as upstream:
        for number in range(site.scale.rounds):
            name = f"fills{number}"
            with stopped_after(sluice_before(site, name, upstream.address)) as caches:
                samples.append(_fill_all(site, caches[0], blobs))
                peak = max(peak, caches[0].process.peak_bytes())
            site.discard(name)
            show_progress(f"  round {number + 1}/{site.scale.rounds}: {samples[-1].work.value:.1f} MiB")
    title = f"peak resident memory, {FILLS} fills of {size // MIB} MiB at once with {FILLS * READERS_PER_FILL} readers"
    bars = (Bar(SLUICE, FILLS_LIMIT_MIB, at_most=True),)
    note = "the worst round counts; cost per GiB sent to readers"
    return [Row("15", title, "MiB", PER_GIB, (Series(SLUICE, tuple(samples), peak),), bars, note)]


def _latency(site: Site, peer: Peer) -> Work:
    rate = site.clients.manifests(peer, manifest_path(TAG), site.scale.wrk_s, TAG_CONNECTIONS)
    return Work(rate.p99_ms, rate.requests)


def _fill_all(site: Site, peer: Peer, blobs: Sequence[Blob]) -> Sample:
    peer.process.reset_peak()
    before_s = peer.process.cpu_s()
    readers: list[subprocess.Popen[str]] = [site.clients.start_discard(peer, blob, READERS_PER_FILL) for blob in blobs]
    for reader in readers:
        site.clients.finish_discard(reader)
    moved = sum(blob.size for blob in blobs) * READERS_PER_FILL
    return Sample(Work(peer.process.peak_bytes() / MIB, moved / GIB), peer.process.cpu_s() - before_s)

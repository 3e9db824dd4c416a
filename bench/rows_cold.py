"""Rows 8 to 11: what nobody has pulled before, through a cache. Every round pulls bytes that no cache has seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from bench.caches import (
    NO_CEILING,
    SLUICE_UNCAPPED,
    address,
    await_held,
    registry_before,
    sluice_before,
    stopped_after,
    upstream_registry,
    wanted,
)
from bench.content import MIB, Blob, random_blob
from bench.crowd import FirstByte, pull_at_once
from bench.fill import hold_blob
from bench.load import blob_path
from bench.measure import PER_GIB, PER_PULL, Bar, Row, Work, measure
from bench.peers import REGISTRY, REPOSITORY, SLUICE, Peer
from bench.rows_pull import BLOB_BYTES, GIB
from bench.site import Site, settle
from sluice.testing.upstreams import GeneratedBlob, Relay, Shape, UpstreamContent, UpstreamServer

CROWD = 100
CROWD_LAYERS, CROWD_LAYER_BYTES = 4, 2 * MIB
LINK_BYTES_PER_S = 100_000_000
FIRST_BYTES, FIRST_BLOB_BYTES = 20, MIB
STRAIGHT = "straight from the upstream"


def crowd(site: Site) -> list[Row]:
    """Row 8: 100 clients pull the same cold image at once; counted at the upstream."""
    upstream, rounds = UpstreamServer(UpstreamContent()), count()
    with upstream, _caches(site, "crowd", upstream.address, capped_only=True) as caches:

        def pull(peer: Peer) -> Work:
            repository, seed = f"{REPOSITORY}{(number := next(rounds))}", number * CROWD_LAYERS
            layers = [GeneratedBlob(CROWD_LAYER_BYTES, seed + layer) for layer in range(CROWD_LAYERS)]
            upstream.content.push_image(repository, "latest", layers)
            elapsed_s = pull_at_once(peer, repository, "latest", CROWD)
            upstream.wait_idle()
            times.setdefault(peer.name, []).append(elapsed_s)
            return Work(max(upstream.gets(layer.digest) for layer in layers), CROWD)

        times: dict[str, list[float]] = {}
        series = measure(caches, site.scale.rounds, pull)
    took = ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in times.items())
    title = f"{CROWD} clients pull the same cold image at once"
    note = (
        f"{CROWD_LAYERS} layers of {CROWD_LAYER_BYTES // MIB} MiB, decrypted and hashed by the clients; median: {took}"
    )
    return [Row("8", title, "GETs per digest", PER_PULL, series, (Bar(SLUICE, 1, at_most=True),), note)]


def limited(site: Site) -> list[Row]:
    """Row 9: a cold blob over a link of 100 MB/s, beside the same straight from the upstream."""
    size = BLOB_BYTES // site.scale.shrink
    origin = _origin(site)
    with Relay(origin.port, Shape(total_bytes_per_s=LINK_BYTES_PER_S), scheme="https") as link:
        straight = Peer(STRAIGHT, link.port, origin.process, origin.context)
        with stopped_after(sluice_before(site, "limited", link.address)) as caches:
            fresh = _Fresh(site, "limited-blob", origin, size)
            servers = [straight, *caches]
            series = measure(servers, site.scale.rounds, lambda peer: _seconds(site, peer, fresh.blob), fresh.prepare)
    title = f"cold blob of {size // MIB} MiB, upstream limited to {LINK_BYTES_PER_S // 10**6} MB/s"
    bars = (Bar(SLUICE, 1.05, STRAIGHT, at_most=True),)
    return [Row("9", title, "s", PER_GIB, series, bars, "TLS on both sides, one client that discards ciphertext")]


def unlimited(site: Site) -> list[Row]:
    """Row 10: a cold blob from an upstream on loopback, beside docker-registry's proxy mode."""
    size = BLOB_BYTES // site.scale.shrink
    with upstream_registry(site, "unlimited-upstream") as upstream:
        fresh = _Fresh(site, "unlimited-blob", upstream, size)
        with _caches(site, "unlimited", address(upstream)) as caches:
            series = measure(caches, site.scale.rounds, lambda peer: _rate(site, peer, fresh.blob), fresh.prepare)
            held = measure(caches, site.scale.rounds, lambda peer: _held_rate(site, peer, fresh.blob), fresh.prepare)
    title = f"cold blob of {size // MIB} MiB, upstream unlimited on loopback"
    bars = (Bar(SLUICE, 1.5, REGISTRY),)
    return [
        Row("10", title, "MiB/s", PER_GIB, series, bars, "one client that discards ciphertext, until it has all"),
        Row("10b", f"{title}, until the cache holds it", "MiB/s", PER_GIB, held),
    ]


def first_byte(site: Site) -> list[Row]:
    """Row 11: how much later a cold blob's first byte comes through the cache."""
    content, seeds = UpstreamContent(), count(1_000_000)
    with (
        UpstreamServer(content) as upstream,
        stopped_after(sluice_before(site, "first-byte", upstream.address)) as caches,
    ):
        servers = [Peer(STRAIGHT, upstream.port, caches[0].process, None), *caches]
        series = measure(servers, site.scale.rounds, lambda peer: _first_bytes(peer, content, next(seeds)))
    title = "first byte of a cold blob"
    note = f"median of {FIRST_BYTES} blobs of {FIRST_BLOB_BYTES // MIB} MiB in each round, kept connections"
    return [Row("11", title, "ms", PER_PULL, series, (Bar(SLUICE, 20, STRAIGHT, at_most=True, more=True),), note)]


class _Fresh:
    """A new random blob in the upstream for each round; everything written before is on the disk by then."""

    def __init__(self, site: Site, name: str, upstream: Peer, size: int) -> None:
        self._site, self._path, self._upstream, self._size = site, site.scratch(name), upstream, size
        self.blob: Blob = Blob(self._path, "", 0)

    def prepare(self, _: int) -> None:
        self.blob = random_blob(self._path, self._size)
        hold_blob(self._site.clients, self._upstream, self.blob)
        settle()


@contextmanager
def _caches(site: Site, name: str, upstream: str, *, capped_only: bool = False) -> Iterator[list[Peer]]:
    """Sluice with its default ceiling and without one, and docker-registry."""
    peers = []
    if wanted(site, SLUICE):
        peers.append(sluice_before(site, f"{name}-sluice", upstream))
    if wanted(site, SLUICE) and not capped_only:
        peers.append(sluice_before(site, f"{name}-uncapped", upstream, NO_CEILING, SLUICE_UNCAPPED))
    if wanted(site, REGISTRY):
        peers.append(registry_before(site, f"{name}-registry", upstream))
    with stopped_after(*peers) as running:
        yield running


def _origin(site: Site) -> Peer:
    """An upstream that speaks TLS and costs next to nothing: nginx where it runs, for its files are content."""
    return next(iter(site.peers("nginx", REGISTRY, SLUICE)))


def _seconds(site: Site, peer: Peer, blob: Blob) -> Work:
    settle()
    done = site.clients.discard(peer, blob, 1)
    return Work(done.elapsed_s, blob.size / GIB, done.client_cpu_s)


def _rate(site: Site, peer: Peer, blob: Blob) -> Work:
    done = _seconds(site, peer, blob)
    return Work(blob.size / MIB / done.value, done.amount, done.client_cpu_s)


def _held_rate(site: Site, peer: Peer, blob: Blob) -> Work:
    done = _seconds(site, peer, blob)
    return Work(blob.size / MIB / (done.value + await_held(peer, [blob])), done.amount, done.client_cpu_s)


def _first_bytes(peer: Peer, content: UpstreamContent, seed: int) -> Work:
    connection = FirstByte(peer.port, peer.context)
    times = []
    for number in range(FIRST_BYTES):
        given = GeneratedBlob(FIRST_BLOB_BYTES, seed * FIRST_BYTES + number)
        digest = content.hold_blob(REPOSITORY, given)
        path = blob_path(Blob(Path(), str(digest), given.size))
        times.append(connection.get(path, given.size))
    connection.close()
    return Work(statistics.median(times) * 1000, FIRST_BYTES)

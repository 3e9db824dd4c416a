"""Rows 1 to 3: reading manifests and blobs."""

from __future__ import annotations

from bench.content import MIB, Blob, random_blob, random_image
from bench.fill import TAG, hold_blob, hold_image
from bench.load import manifest_path
from bench.measure import PER_GIB, PER_REQUEST, Bar, Row, Work, measure
from bench.peers import NGINX, REGISTRY, SLUICE, SLUICE_TOKEN, Peer, start_sluice
from bench.site import Site

GIB = 1024 * MIB
BLOB_BYTES = 256 * MIB
PULLS_AT_ONCE = 8
_IMAGE_LAYERS = 6
_LAYER_BYTES = 1024


def manifests(site: Site) -> list[Row]:
    """Row 1: manifest GET by tag, 32 connections."""
    servers = site.peers(SLUICE, REGISTRY, NGINX)
    image = random_image(site.scratch("manifests"), _IMAGE_LAYERS, _LAYER_BYTES)
    for peer in servers:
        hold_image(site.clients, peer, image)
    bars = (Bar(SLUICE, 12, REGISTRY), Bar(SLUICE, 0.5, NGINX))
    note = f"a manifest of {len(image.manifest):,} bytes"
    series = measure(servers, site.scale.rounds, lambda peer: manifests_rate(site, peer))
    return [Row("1", "manifest GET by tag, 32 connections", "requests/s", PER_REQUEST, series, bars, note)]


def manifests_with_token(site: Site) -> list[Row]:
    """Row 2: the same with a bearer token in each request, beside the open server of row 1."""
    image = random_image(site.scratch("token"), _IMAGE_LAYERS, _LAYER_BYTES)
    guarded = start_sluice(site.scratch("sluice-token"), site.identity, users=True)
    try:
        servers = [*site.peers(SLUICE), guarded]
        for peer in servers:
            hold_image(site.clients, peer, image)
        series = measure(servers, site.scale.rounds, lambda peer: manifests_rate(site, peer))
    finally:
        guarded.process.stop()
    bars = (Bar(SLUICE_TOKEN, 0.85, SLUICE),)
    return [Row("2", "the same with token authentication", "requests/s", PER_REQUEST, series, bars)]


def blobs(site: Site) -> list[Row]:
    """Row 3: blob GET, 8 at once; by the cheap client for the bar, by curl for information."""
    servers = site.peers(SLUICE, REGISTRY, NGINX)
    blob = random_blob(site.scratch("blob"), BLOB_BYTES // site.scale.shrink)
    for peer in servers:
        hold_blob(site.clients, peer, blob)
        site.clients.discard(peer, blob, PULLS_AT_ONCE)  # warm-up
    bars = (Bar(SLUICE, 1.3, REGISTRY), Bar(SLUICE, 0.95, NGINX))
    cheap = measure(servers, site.scale.rounds, lambda peer: pull_rate(site, peer, blob))
    curl = measure(servers, site.scale.rounds, lambda peer: _curl(site, peer, blob))
    title = f"blob GET {blob.size // MIB} MiB, {PULLS_AT_ONCE} at once"
    return [
        Row("3", title, "MiB/s", PER_GIB, cheap, bars, "the client discards ciphertext, see Method"),
        Row("3b", f"{title}, curl", "MiB/s", PER_GIB, curl, (), "8 curl processes decrypt everything"),
    ]


def manifests_rate(site: Site, peer: Peer) -> Work:
    """One round of row 1: requests per second."""
    rate = site.clients.manifests(peer, manifest_path(TAG), site.scale.wrk_s)
    return Work(rate.per_s, rate.requests)


def pull_rate(site: Site, peer: Peer, blob: Blob, count: int = PULLS_AT_ONCE) -> Work:
    """One round of row 3: MiB per second of ``count`` downloads at once."""
    done = site.clients.discard(peer, blob, count)
    total = blob.size * count
    return Work(total / MIB / done.elapsed_s, total / GIB, done.client_cpu_s)


def _curl(site: Site, peer: Peer, blob: Blob) -> Work:
    done = site.clients.curl_downloads(peer, blob, PULLS_AT_ONCE)
    total = blob.size * PULLS_AT_ONCE
    return Work(total / MIB / done.elapsed_s, total / GIB, done.client_cpu_s)

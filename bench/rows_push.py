"""Rows 4 and 5: writing blobs and images. Every round pushes bytes that no server has seen, after a ``sync``."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.content import MIB, Blob, Image, random_blob, random_image
from bench.measure import PER_GIB, PER_IMAGE, Bar, Row, Work, measure
from bench.peers import REGISTRY, SLUICE, Peer, start_sluice
from bench.rows_pull import BLOB_BYTES, GIB
from bench.site import Site, settle

PUSHES_AT_ONCE = 4
IMAGE_LAYERS = 40
IMAGE_LAYER_BYTES = 64 * 1024
IMAGE_WORKERS = 8
PACED = "Sluice, paced pushes"


def blobs(site: Site) -> list[Row]:
    """Row 4: blob push, one at a time for the bar, 4 at once for information."""
    size = BLOB_BYTES // site.scale.shrink
    title = f"blob push {size // MIB} MiB"
    bars = (Bar(SLUICE, 1.2, REGISTRY),)
    servers = site.peers(SLUICE, REGISTRY)
    paced = start_sluice(site.scratch("paced"), site.identity, name=PACED, flags=("--storage-pace-pushes",))
    try:
        return [
            _blob_row(site, "4", f"{title}, acknowledged when durable", 1, bars, [*servers, paced]),
            _blob_row(site, "4b", f"{title}, {PUSHES_AT_ONCE} at once", PUSHES_AT_ONCE, (), [*servers, paced]),
        ]
    finally:
        paced.process.stop()


def images(site: Site) -> list[Row]:
    """Row 5: an image of small layers, 8 at once, as docker and skopeo push; as containerd does for information."""
    title = f"push of an image, {IMAGE_LAYERS} layers of {IMAGE_LAYER_BYTES // 1024} KiB, {IMAGE_WORKERS} at once"
    bars = (Bar(SLUICE, 1.5, REGISTRY),)
    return [
        _image_row(site, "5", title, bars, patch=True),
        _image_row(site, "5b", f"{title}, one PUT per layer", (), patch=False),
    ]


class _Fresh:
    """New random blobs for each round; those of the round before go."""

    def __init__(self, directory: Path, count: int, size: int) -> None:
        self.blobs: list[Blob] = []
        self._directory, self._count, self._size = directory, count, size
        directory.mkdir()

    def prepare(self, _: int) -> None:
        self.blobs = [random_blob(self._directory / f"blob{number}", self._size) for number in range(self._count)]


def _blob_row(site: Site, number: str, title: str, count: int, bars: tuple[Bar, ...], servers: list[Peer]) -> Row:
    fresh = _Fresh(site.scratch(f"push{number}"), count, BLOB_BYTES // site.scale.shrink)

    def push(peer: Peer) -> Work:
        settle()
        done = site.clients.push_blobs(peer, fresh.blobs)
        total = sum(blob.size for blob in fresh.blobs)
        return Work(total / MIB / done.elapsed_s, total / GIB, done.client_cpu_s)

    series = measure(servers, site.scale.rounds, push, fresh.prepare)
    return Row(number, title, "MiB/s", PER_GIB, series, bars, "POST, then PUT by curl")


def _image_row(site: Site, number: str, title: str, bars: tuple[Bar, ...], *, patch: bool) -> Row:
    directory = site.scratch(f"images{number}")
    images: list[Image] = []

    def prepare(_: int) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        images[:] = [random_image(directory, IMAGE_LAYERS, IMAGE_LAYER_BYTES)]

    def push(peer: Peer) -> Work:
        settle()
        done = site.clients.push_image(peer, images[0], IMAGE_WORKERS, patch=patch)
        return Work(1 / done.elapsed_s, 1, done.client_cpu_s)

    series = measure(site.peers(SLUICE, REGISTRY), site.scale.rounds, push, prepare)
    requests = "HEAD, POST, PATCH, PUT" if patch else "HEAD, POST, PUT"
    return Row(number, title, "images/s", PER_IMAGE, series, bars, f"{requests} per layer, then config and manifest")

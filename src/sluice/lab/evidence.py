"""What proves that a pull went on after something was taken away: who sent how much of a layer, and how much had come.

The runtime's side is a file that grows while a layer comes (containerd's content store, ``docs/content-flow.md``); the
replicas' side is their access logs. A replica that was killed has written no line about the request that it died in,
but the one that sent the rest has: status 206 and fewer bytes than the layer has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sluice.lab.containerd_config import ContainerdPlace

CONTENT = "root/io.containerd.content.v1.content"
# The access log for people, as ``telemetry`` writes it.
_LINE = re.compile(r"^\S+Z (\d{3}) ([A-Z]+) (\S+) (\d+)B \S+ms (\S+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sending:
    """One answer to a request for a blob. ``sent`` in bytes; ``client`` is the address that asked."""

    status: int
    sent: int
    client: str


def sendings(log: str, digest: str) -> list[Sending]:
    """The answers to GETs of a blob in a replica's access log, in the order in which they ended."""
    return [
        Sending(int(status), int(sent), client)
        for status, method, path, sent, client in _LINE.findall(log)
        if method == "GET" and f"/blobs/{digest}" in path
    ]


def sent_by_victim(size: int, others: Iterable[Sending]) -> int:
    """How much of a blob of ``size`` bytes came from the one that wrote no line: what the others did not send."""
    return size - sum(one.sent for one in others if one.status == 206)


def received(place: ContainerdPlace, digest: str) -> int:
    """How many bytes of a blob a containerd has, whole or in the middle of a pull. ``place`` as we reach it."""
    content = place.directory / CONTENT
    algorithm, _, encoded = digest.partition(":")
    for path in (content / "blobs" / algorithm / encoded, *_arriving(content, digest)):
        try:
            return path.stat().st_size
        except OSError:
            continue
    return 0


def _arriving(content: Path, digest: str) -> Iterable[Path]:
    """Where its bytes are written while it comes; ``ref`` names what it will be: ``…/layer-sha256:…``."""
    for ref in content.glob("ingest/*/ref"):
        try:
            if ref.read_text(encoding="utf-8").endswith(digest):
                yield ref.with_name("data")
        except OSError:
            continue

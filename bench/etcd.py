"""The neighbour: Debian's etcd on the same disk, a steady load of puts, and what its histogram says of its fsyncs."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers import await_ready, free_port
from bench.process import Process
from bench.wire import BenchError, Connection

PUTS_PER_S = 100
VALUE_BYTES = 1024
KEYS = 1000
_BUCKET = re.compile(r'^etcd_disk_wal_fsync_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)

Buckets = dict[float, float]
"""Upper bound in seconds to the number of fsyncs that took no longer."""


class Etcd:
    """A member alone, with its defaults. ``load`` puts while it is open; ``buckets`` are since the start."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self._port, peer_port = free_port(), free_port()
        client, peer = f"http://127.0.0.1:{self._port}", f"http://127.0.0.1:{peer_port}"
        command = [
            *("etcd", "--name", "bench", "--data-dir", str(directory / "data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"bench={peer}"),
        ]
        self.process = Process(command, directory / "log")
        await_ready(self.process, self._healthy)

    def buckets(self) -> Buckets:
        """The histogram of its WAL's fsyncs."""
        connection = Connection(self._port, None)
        text = connection.request("GET", "/metrics").expect(200).body.decode()
        connection.close()
        found = {float(bound): float(count) for bound, count in _BUCKET.findall(text)}
        if not found:
            raise BenchError("etcd shows no etcd_disk_wal_fsync_duration_seconds")
        return found

    @contextmanager
    def load(self) -> Iterator[None]:
        """``PUTS_PER_S`` puts of ``VALUE_BYTES``, each at its time, whether or not the one before was late."""
        done = threading.Event()
        thread = threading.Thread(target=self._put, args=(done,), name="etcd load")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _put(self, done: threading.Event) -> None:
        connection, number, started = Connection(self._port, None), 0, time.monotonic()
        while not done.wait(max(0.0, started + number / PUTS_PER_S - time.monotonic())):
            key = base64.b64encode(f"key{number % KEYS}".encode()).decode()
            value = base64.b64encode(os.urandom(VALUE_BYTES)).decode()
            body = json.dumps({"key": key, "value": value}).encode()
            connection.request("POST", "/v3/kv/put", body, {"Content-Type": "application/json"}).expect(200)
            number += 1
        connection.close()

    def _healthy(self) -> bool:
        try:
            connection = Connection(self._port, None)
            answer = connection.request("GET", "/health")
            connection.close()
        except (OSError, BenchError):
            return False
        return answer.status == 200


def between(before: Buckets, after: Buckets) -> Buckets:
    """What was counted in between."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def quantile(buckets: Buckets, share: float) -> float:
    """Seconds that ``share`` of all stay under, as Prometheus' histogram_quantile reckons: evenly within a bucket."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        raise BenchError("etcd has synced nothing: is it under load?")
    rank, lower, below = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower

"""``python -m bench.layers < JOB``: push one image over a few kept connections, timed from inside.

A process of its own, so that the harness' work is not on the clock. For each layer the requests of a real client, in
its order: HEAD (not there yet), POST, then PATCH and PUT as docker and skopeo do, or one PUT as containerd does. When
all layers are up: the config the same way, then the manifest under a tag. Bodies are in memory before the clock
starts; connecting, TLS handshakes included, is on the clock, as it is for a real push.

The job, JSON on standard input: ``port``, ``certificate``, ``authorization``, ``workers``, ``patch``, ``layers``
(paths), ``config`` (path), ``manifest`` (text). One JSON line comes out: seconds, and the client's own CPU seconds.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from bench.content import MANIFEST_TYPE, digest_of
from bench.peers import REPOSITORY
from bench.tls import client_context
from bench.wire import BenchError, Connection, expect_cipher

_BINARY = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class _Body:
    data: bytes
    digest: str


@dataclass(frozen=True)
class _Push:
    port: int
    context: ssl.SSLContext
    authorization: str
    patch: bool

    def connect(self) -> Connection:
        connection = Connection(self.port, self.context, self.authorization)
        expect_cipher(connection)
        return connection

    def layers(self, waiting: SimpleQueue[_Body]) -> None:
        connection = self.connect()
        while True:
            try:
                self.blob(connection, waiting.get_nowait())
            except Empty:
                connection.close()
                return

    def blob(self, connection: Connection, body: _Body) -> None:
        connection.request("HEAD", f"/v2/{REPOSITORY}/blobs/{body.digest}").expect(404)
        location = connection.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/").expect(202).location()
        rest = body.data
        if self.patch:
            span = {**_BINARY, "Content-Range": f"0-{len(body.data) - 1}"}
            location = connection.request("PATCH", location, body.data, span).expect(202).location()
            rest = b""
        location += ("&" if "?" in location else "?") + f"digest={body.digest}"
        connection.request("PUT", location, rest, _BINARY).expect(201)

    def manifest(self, connection: Connection, manifest: bytes) -> None:
        headers = {"Content-Type": MANIFEST_TYPE}
        connection.request("PUT", f"/v2/{REPOSITORY}/manifests/pushed", manifest, headers).expect(201)


def _read(path: str) -> _Body:
    data = Path(path).read_bytes()
    return _Body(data, digest_of(data))


def _main(job: dict[str, Any]) -> None:
    push = _Push(job["port"], client_context(job["certificate"]), job["authorization"], job["patch"])
    config, manifest = _read(job["config"]), job["manifest"].encode()
    waiting: SimpleQueue[_Body] = SimpleQueue()
    for path in job["layers"]:
        waiting.put(_read(path))
    before, started = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(job["workers"]) as pool:
        for done in [pool.submit(push.layers, waiting) for _ in range(job["workers"])]:
            done.result()
    connection = push.connect()
    push.blob(connection, config)
    push.manifest(connection, manifest)
    print(json.dumps({"elapsed_s": time.perf_counter() - started, "cpu_s": time.process_time() - before}))


if __name__ == "__main__":
    try:
        _main(json.load(sys.stdin))
    except (BenchError, OSError, ssl.SSLError) as error:
        raise SystemExit(f"layers: {error}") from None

"""Clients that pull one image at the same time, and one that waits for a first byte: for what a cold cache does."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from bench.content import MANIFEST_TYPE
from bench.peers import Peer
from bench.wire import RESPONSE_TIMEOUT_S, BenchError

_READ_BYTES = 256 * 1024


def pull_at_once(peer: Peer, repository: str, tag: str, clients: int) -> float:
    """``clients`` connect, and then all pull the image at the same moment, each blob verified; seconds until the last
    one has it."""
    together = Barrier(clients + 1)

    def pull() -> None:
        connection = peer.connect()
        together.wait(RESPONSE_TIMEOUT_S)
        manifest = connection.request("GET", f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE})
        document = json.loads(manifest.expect(200).body)
        for part in (document["config"], *document["layers"]):
            body = connection.request("GET", f"/v2/{repository}/blobs/{part['digest']}").expect(200).body
            if f"sha256:{hashlib.sha256(body).hexdigest()}" != part["digest"]:
                raise BenchError(f"{peer.name} sent something else than {part['digest']}")
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        pulls = [pool.submit(pull) for _ in range(clients)]
        together.wait(RESPONSE_TIMEOUT_S)
        started = time.perf_counter()
        for done in pulls:
            done.result()
        return time.perf_counter() - started


class FirstByte:
    """A kept connection that times the first byte of bodies."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain if context is None else context.wrap_socket(plain, server_hostname="localhost")

    def get(self, path: str, size: int) -> float:
        """Seconds from the request to the first byte of the body, all of which is then read."""
        started = time.perf_counter()
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        data = b""
        while not data.partition(b"\r\n\r\n")[2]:
            data += self._receive()
        elapsed_s = time.perf_counter() - started
        head, _, body = data.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise BenchError(f"expected 200, got {head[:300]!r}")
        left = size - len(body)
        while left > 0:
            left -= len(self._receive())
        return elapsed_s

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise BenchError("the server ended the connection before its response was complete")
        return data

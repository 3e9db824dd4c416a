"""The clients that load a server: wrk, curl, and this package's own in processes of their own.

Each function returns what the clock says inside or round the client, and raises BenchError for any answer that is not
the right one. All of them speak the one cipher (``tls``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.content import Blob, Image
from bench.peers import REPOSITORY, Peer
from bench.tls import Identity
from bench.wire import BenchError, Connection

# What containerd 1.7 and 2.x send with a manifest request.
ACCEPT = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
)
WRK_CONNECTIONS = 32
WRK_THREADS = 2
LOAD_TIMEOUT_S = 600.0
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Rate:
    """What wrk counted: requests per second, requests in all, and the latency that 99 of 100 stay under."""

    per_s: float
    requests: int
    p99_ms: float


@dataclass(frozen=True)
class Transfer:
    """A timed load: wall seconds, and CPU seconds that the client itself took."""

    elapsed_s: float
    client_cpu_s: float


class Clients:
    """Starts clients with the environment that makes them speak the one cipher."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._environment: Mapping[str, str] = {**os.environ, **identity.client_environment()}

    def manifests(self, peer: Peer, path: str, duration_s: int, connections: int = WRK_CONNECTIONS) -> Rate:
        """GET ``path`` as fast as that many kept connections can. Any other answer than 2xx is an error."""
        command = ["wrk", "--latency", f"-t{WRK_THREADS}", f"-c{connections}", f"-d{duration_s}s"]
        command += ["-H", f"Accept: {ACCEPT}", "-H", "User-Agent: containerd/2.0"]
        if authorization := peer.authorization():
            command += ["-H", f"Authorization: {authorization}"]
        output = self._run([*command, peer.url(path)])
        if "Non-2xx" in output or "Socket errors" in output:
            raise BenchError(f"wrk against {peer.name} reports errors:\n{output}")
        per_s, requests = _number(r"Requests/sec:\s+([\d.]+)", output), _number(r"(\d+) requests in", output)
        return Rate(float(per_s), int(requests), _milliseconds(_number(r"99%\s+([\d.]+[mu]?s)", output)))

    def discard(self, peer: Peer, blob: Blob, count: int) -> Transfer:
        """Download ``blob`` ``count`` times at once, throwing the ciphertext away."""
        return _transfer(self._finish(self.start_discard(peer, blob, count)))

    def start_discard(self, peer: Peer, blob: Blob, count: int) -> subprocess.Popen[str]:
        """The same in the background; hand the result to ``finish_discard``."""
        path = blob_path(blob)
        arguments = [str(peer.port), path, str(blob.size), str(count), str(self.identity.certificate)]
        return self._start([sys.executable, "-m", "bench.discard", *arguments])

    def finish_discard(self, child: subprocess.Popen[str]) -> Transfer:
        """Wait for ``start_discard``."""
        return _transfer(self._finish(child))

    def curl_downloads(self, peer: Peer, blob: Blob, count: int) -> Transfer:
        """Download with ``count`` curl processes that decrypt everything. The clock runs from the first start."""
        command = [*self._curl(), "-o", "/dev/null", peer.url(blob_path(blob))]
        before, started = os.times(), time.perf_counter()
        for child in [self._start(command) for _ in range(count)]:
            _expect_status(self._finish(child), "200")
        elapsed_s, after = time.perf_counter() - started, os.times()
        return Transfer(elapsed_s, _children_s(after) - _children_s(before))

    def push_blobs(self, peer: Peer, blobs: Sequence[Blob]) -> Transfer:
        """Push all of ``blobs`` at once, each by POST and then PUT; the clock stops at the last 201."""
        connection = peer.connect()  # the TLS handshake of the POSTs is no part of the figure
        before, started = os.times(), time.perf_counter()
        children = [self._start(self._put(peer, blob, _begin(connection, blob))) for blob in blobs]
        for child in children:
            _expect_status(self._finish(child), "201")
        elapsed_s, after = time.perf_counter() - started, os.times()
        connection.close()
        return Transfer(elapsed_s, _children_s(after) - _children_s(before))

    def push_image(self, peer: Peer, image: Image, workers: int, *, patch: bool) -> Transfer:
        """Push ``image`` with ``workers`` connections: layers at once, then config, then manifest (``layers``)."""
        job = {
            "port": peer.port,
            "certificate": str(self.identity.certificate),
            "authorization": peer.authorization(),
            "workers": workers,
            "patch": patch,
            "layers": [str(blob.path) for blob in image.layers],
            "config": str(image.config.path),
            "manifest": image.manifest.decode(),
        }
        return _transfer(self._run([sys.executable, "-m", "bench.layers"], given=json.dumps(job)))

    def verify(self, peer: Peer, blob: Blob) -> None:
        """Download for real, decrypted, and compare the digest."""
        hasher = hashlib.sha256()
        command = [*self._curl(silent_status=True), peer.url(blob_path(blob))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=self._environment) as child:
            assert child.stdout is not None
            while piece := child.stdout.read(_CHUNK_BYTES):
                hasher.update(piece)
        if child.returncode != 0 or f"sha256:{hasher.hexdigest()}" != blob.digest:
            raise BenchError(f"{peer.name} sent something else than {blob.digest}: sha256:{hasher.hexdigest()}")

    def _put(self, peer: Peer, blob: Blob, location: str) -> list[str]:
        command = [*self._curl(), "-o", "/dev/null", "-T", str(blob.path)]
        # Neither containerd nor skopeo waits for 100 Continue, as curl would.
        headers = ["Expect:", "Content-Type: application/octet-stream"]
        if authorization := peer.authorization():
            headers.append(f"Authorization: {authorization}")
        for header in headers:
            command += ["-H", header]
        return [*command, peer.url(location)]

    def _curl(self, *, silent_status: bool = False) -> list[str]:
        status = [] if silent_status else ["-w", "%{http_code}"]
        return ["curl", "-q", "--http1.1", "-sS", "--fail", "--cacert", str(self.identity.certificate), *status]

    def _run(self, command: Sequence[str], given: str = "") -> str:
        return self._finish(self._start(command), given)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            cwd=Path(__file__).parent.parent,
        )

    def _finish(self, child: subprocess.Popen[str], given: str = "") -> str:
        try:
            output, complaints = child.communicate(given, timeout=LOAD_TIMEOUT_S)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        if child.returncode != 0:
            raise BenchError(f"{child.args!r} ended with {child.returncode}: {complaints.strip()} {output.strip()}")
        return output


def blob_path(blob: Blob) -> str:
    """Where every peer has ``blob``."""
    return f"/v2/{REPOSITORY}/blobs/{blob.digest}"


def manifest_path(reference: str) -> str:
    """Where every peer has the manifest called ``reference``."""
    return f"/v2/{REPOSITORY}/manifests/{reference}"


def _begin(connection: Connection, blob: Blob) -> str:
    location = connection.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/").expect(202).location()
    return location + ("&" if "?" in location else "?") + f"digest={blob.digest}"


def _transfer(line: str) -> Transfer:
    report = json.loads(line)
    return Transfer(report["elapsed_s"], report["cpu_s"])


def _expect_status(output: str, status: str) -> None:
    if output != status:
        raise BenchError(f"curl got {output}, expected {status}")


def _children_s(times: os.times_result) -> float:
    return times.children_user + times.children_system


def _milliseconds(text: str) -> float:
    """wrk shows 12.34us, 12.34ms or 12.34s."""
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise BenchError(f"no duration: {text}")


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"no {pattern!r} in the client's output:\n{text}")
    return found[1]

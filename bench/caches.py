"""Servers that stand before an upstream registry: Sluice as cache and as plain proxy, and their peers.

Each has its defaults but for the address of its upstream, and begins with nothing. What stands before what:
clients - TLS - cache - upstream, the upstream on loopback as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.content import Blob
from bench.nginx import run_nginx
from bench.peers import NGINX, SLUICE, Peer, answering, free_port, start_registry, start_sluice
from bench.site import Site
from bench.tls import client_context
from bench.wire import BenchError

SLUICE_UNCAPPED = "Sluice, no ceiling"
HELD_TIMEOUT_S = 120.0
_POLL_S = 0.005
NO_CEILING = ("--storage-write-bytes-per-s", "0")


@contextmanager
def upstream_registry(site: Site, name: str) -> Iterator[Peer]:
    """A docker-registry without TLS, for a row's time; ``name`` is of its directory."""
    upstream = start_registry(site.scratch(name), site.identity, tls=False)
    try:
        yield upstream
    finally:
        upstream.process.stop()


def address(upstream: Peer) -> str:
    """The upstream's, for those that stand before it."""
    return f"{'https' if upstream.context else 'http'}://127.0.0.1:{upstream.port}"


def sluice_before(site: Site, directory: str, upstream: str, flags: Sequence[str] = (), name: str = SLUICE) -> Peer:
    """Sluice in proxy mode, or in the one that ``flags`` name."""
    mode = () if "--mode" in flags else ("--mode", "proxy")
    trust = ("--upstream-ca", str(site.identity.certificate)) if upstream.startswith("https:") else ()
    given = (*mode, "--upstream", upstream, *trust, *flags)
    return start_sluice(site.scratch(directory), site.identity, flags=given, name=name)


def registry_before(site: Site, directory: str, upstream: str) -> Peer:
    """docker-registry as a pull-through cache."""
    return start_registry(site.scratch(directory), site.identity, remote=upstream)


@contextmanager
def stopped_after(*peers: Peer) -> Iterator[list[Peer]]:
    """End them when the row is done."""
    with ExitStack() as running:
        for peer in peers:
            running.callback(peer.process.stop)
        yield list(peers)


def await_held(peer: Peer, blobs: Sequence[Blob]) -> float:
    """Seconds until the cache holds all of ``blobs`` as files under their names; of either kind of registry."""
    started, data = time.perf_counter(), peer.process.log.parent / "data"
    while not all(_is_held(data, blob.digest) for blob in blobs):
        if peer.process.ended or time.perf_counter() - started > HELD_TIMEOUT_S:
            raise BenchError(f"{peer.name} does not hold what was pulled; its log ends:\n{peer.process.last_words()}")
        time.sleep(_POLL_S)
    return time.perf_counter() - started


def _is_held(data: Path, digest: str) -> bool:
    algorithm, digits = digest.split(":")
    ours = data / "content" / algorithm / digits[:2] / digits
    theirs = data / "docker" / "registry" / "v2" / "blobs" / algorithm / digits[:2] / digits / "data"
    return ours.exists() or theirs.exists()


def wanted(site: Site, *names: str) -> set[str]:
    """Which of the peers ``names`` this run measures."""
    return {name for name in names if name in site.servers}


_ORIGIN = "upstream origin {{ server 127.0.0.1:{port}; keepalive 16; }}"
_PASS = """location = /ready {{ return 200 "ready"; }}
    location / {{
      proxy_pass https://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host localhost;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_ssl_trusted_certificate {identity.certificate};
      proxy_ssl_protocols TLSv1.3;
      proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
      proxy_max_temp_file_size 0;
    }}"""


def nginx_before(site: Site, name: str, upstream_port: int) -> Peer:
    """nginx as a reverse proxy before a TLS server, streaming (no temporary files)."""
    directory = site.scratch(name)
    directory.mkdir(parents=True)
    port, identity = free_port(), site.identity
    origin, passing = _ORIGIN.format(port=upstream_port), _PASS.format(identity=identity)
    process = run_nginx(directory, identity, port, origin, passing)
    return answering(Peer(NGINX, port, process, client_context(identity.certificate)), "/ready")

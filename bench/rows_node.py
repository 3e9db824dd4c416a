"""Row 17: a blob through a node's load balancer beside the same blob straight from the replica."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bench.content import MIB, Blob, random_blob
from bench.fill import hold_blob
from bench.measure import PER_GIB, Bar, Row, Work, measure
from bench.peers import SLUICE, Peer, answering, free_port, start_sluice
from bench.process import Process
from bench.rows_pull import BLOB_BYTES, GIB
from bench.site import Site
from sluice.cluster.layout import BalancerLayout, NodeLayout, Paths, Replica
from sluice.node.balancer import config_path, render_balancer, run_directory
from sluice.pki.material import client_authority, client_certificate

BALANCER = "through the balancer"
RATIO_MIN = 0.6
MEMORY_LIMIT_MIB = 30
PULLS = 3  # what containerd has in flight for one image
MEMORY_PULLS = 16


def balancer(site: Site) -> list[Row]:
    """Row 17: three downloads at once by curl, which decrypts what comes straight; and the balancer's memory."""
    home = site.scratch("node")
    home.mkdir()
    nodes_port = free_port()
    pem = _certificate(home)
    door = ("--nodes-listen", f"127.0.0.1:{nodes_port}", "--nodes-ca", str(home / "client-ca.crt"))
    replica = start_sluice(site.scratch("node-sluice"), site.identity, flags=door)
    try:
        blob = random_blob(home / "blob", BLOB_BYTES // site.scale.shrink)
        hold_blob(site.clients, replica, blob)
        with _balancer(site, home, nodes_port, pem) as through:
            site.clients.verify(through, blob)
            servers = (replica, through)
            speed = measure(servers, site.scale.rounds, lambda peer: _pull(site, peer, blob, PULLS))
            memory = measure((through,), site.scale.rounds, lambda peer: _memory(site, peer, blob))
    finally:
        replica.process.stop()
    title = f"blob GET {blob.size // MIB} MiB, {PULLS} at once, curl, straight and through a node's balancer"
    note = "the balancer speaks mutual TLS to the replica and plain HTTP to the client"
    bars = (Bar(BALANCER, RATIO_MIN, SLUICE),)
    limit = (Bar(BALANCER, MEMORY_LIMIT_MIB, at_most=True),)
    held = f"the balancer's peak resident memory, {MEMORY_PULLS} of them at once"
    return [
        Row("17", title, "MiB/s", PER_GIB, speed, bars, note),
        Row("18", held, "MiB", PER_GIB, memory, limit, "HAProxy's master and worker together; the worst round counts"),
    ]


def _pull(site: Site, peer: Peer, blob: Blob, count: int) -> Work:
    done = site.clients.curl_downloads(peer, blob, count)
    total = blob.size * count
    return Work(total / MIB / done.elapsed_s, total / GIB, done.client_cpu_s)


def _memory(site: Site, peer: Peer, blob: Blob) -> Work:
    peer.process.reset_peak()
    done = _pull(site, peer, blob, MEMORY_PULLS)
    return Work(peer.process.peak_bytes() / MIB, done.amount)


def _certificate(folder: Path) -> Path:
    """The node's certificate and key in one file, of an authority that is made for it."""
    now = datetime.now(UTC)
    leaf = client_certificate(client_authority(folder, now), "worker-1", now)
    pem = folder / "client.pem"
    pem.write_bytes(leaf.chain_pem + leaf.key_pem)
    return pem


@contextmanager
def _balancer(site: Site, home: Path, nodes_port: int, pem: Path) -> Iterator[Peer]:
    """HAProxy with the configuration that a node gets."""
    layout = NodeLayout(
        version=1,
        node="worker-1",
        mode="local",
        virtual="localhost:5001",  # the name in the certificate of a run
        sources=("balancer",),
        replicas=(Replica(name="master-1", host="127.0.0.1", port=nodes_port),),
        authorities=site.identity.certificate.read_text(),
        balancer=BalancerLayout(port=free_port(), metrics_port=free_port()),
        paths=Paths(balancer=str(home), state=str(home)),
    )
    for path, file in render_balancer(layout, str(pem)).items():
        Path(path).write_bytes(file.content)
    run = Path(run_directory(layout))
    run.mkdir()
    process = Process(["haproxy", "-W", "-db", "-C", str(run), "-f", config_path(layout)], home / "haproxy.log")
    try:
        yield answering(Peer(BALANCER, layout.balancer.port, process, None), "/v2/")
    finally:
        process.stop()

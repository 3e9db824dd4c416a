"""Rows 19 to 21: a node that has nothing to do: another plan and apply, the agent's memory, the agent's time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.content import MIB
from bench.measure import PER_SECOND, PER_START, Bar, Row, Sample, Series, Work, show_progress
from bench.peers import free_port
from bench.process import Process
from bench.site import Site
from bench.wire import BenchError
from sluice.cluster.documents import dump_document, load_document
from sluice.cluster.layout import BalancerLayout, MirroredRegistry, NodeLayout, NodeSecrets, Paths, Replica
from sluice.node.apply import apply_intent, intend
from sluice.node.haproxy import Balancer
from sluice.node.status import read_status
from sluice.pki.material import client_authority, client_certificate

NODE, AGENT = "unchanged node", "agent"
REGISTRIES = 50
APPLY_LIMIT_MS, MEMORY_LIMIT_MIB, CPU_LIMIT_PERCENT = 50, 60, 0.1
IDLE_S, IDLE_QUICK_S, START_S = 120, 10, 30
CONFIG = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{}"\n'


def agent(site: Site) -> list[Row]:
    """Rows 19 to 21, on a node with a balancer, two replicas that do not answer, and 50 mirrored registries."""
    home = site.scratch("agent")
    documents = _documents(site, home)
    applied = [_apply(documents, number) for number in range(site.scale.rounds + 1)][1:]  # the first one writes
    unchanged = Series(NODE, tuple(applied), 0)
    idle_s = IDLE_QUICK_S if site.scale.quick else IDLE_S
    memory, cpu = _idle(documents, home, site.scale.rounds, idle_s)
    title = f"plan and apply of an unchanged node with {REGISTRIES} mirrored registries"
    return [
        Row("19", title, "ms", PER_START, (unchanged,), (Bar(NODE, APPLY_LIMIT_MS, at_most=True),), "in one process"),
        Row("20", "agent's memory, idle", "MiB", PER_SECOND, (memory,), (Bar(AGENT, MEMORY_LIMIT_MIB, at_most=True),)),
        Row(
            "21",
            "agent's share of a core, idle",
            "%",
            PER_SECOND,
            (cpu,),
            (Bar(AGENT, CPU_LIMIT_PERCENT, at_most=True),),
            f"over {idle_s} s",
        ),
    ]


def _apply(documents: tuple[Path, Path], number: int) -> Sample:
    started, used = time.perf_counter(), time.process_time()
    apply_intent(intend(load_document(NodeLayout, documents[0]), load_document(NodeSecrets, documents[1])))
    elapsed_ms = 1000 * (time.perf_counter() - started)
    show_progress(f"  apply {number}: {elapsed_ms:.1f} ms")
    return Sample(Work(elapsed_ms, 1), time.process_time() - used)


def _idle(documents: tuple[Path, Path], home: Path, rounds: int, idle_s: int) -> tuple[Series, Series]:
    layout = load_document(NodeLayout, documents[0])
    words = ("--layout", str(documents[0]), "--secrets", str(documents[1]))
    process = Process([sys.executable, "-m", "sluice", "node", "run", *words], home / "agent.log")
    memory, cpu = [], []
    try:
        _await(lambda: (found := read_status(Path(layout.paths.state))) is not None and found.balancer is True, process)
        for number in range(rounds):
            process.reset_peak()
            before = process.cpu_s()
            time.sleep(idle_s)
            used, peak = process.cpu_s() - before, process.peak_bytes()
            memory.append(Sample(Work(peak / MIB, idle_s), used))
            cpu.append(Sample(Work(100 * used / idle_s, idle_s), used))
            show_progress(f"  idle {number + 1}/{rounds}: {peak / MIB:.0f} MiB, {100 * used / idle_s:.3f} %")
        return Series(AGENT, tuple(memory), peak), Series(AGENT, tuple(cpu), peak)
    finally:
        process.stop()
        Balancer.of(layout).stop()


def _await(ready: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > deadline or process.ended:
            raise BenchError(f"the agent is not ready: {process.last_words()}")
        time.sleep(0.1)


def _documents(site: Site, home: Path) -> tuple[Path, Path]:
    """A node below ``home``: its layout and its secrets."""
    home.mkdir()
    now = datetime.now(UTC)
    leaf = client_certificate(client_authority(home, now), "worker-1", now)
    paths = Paths(**{key: f"{home}{value}" for key, value in Paths().model_dump().items()})
    config = Path(paths.containerd_config)
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG.format(paths.containerd_hosts))
    layout = NodeLayout(
        version=1,
        node="worker-1",
        mode="proxy",
        sources=("balancer", "replicas"),
        registries=tuple(MirroredRegistry(name=f"r{number}.example") for number in range(REGISTRIES)),
        replicas=tuple(Replica(name=f"master-{at}", host="127.0.0.1", port=free_port()) for at in (1, 2)),
        authorities=site.identity.certificate.read_text(),
        balancer=BalancerLayout(port=free_port(), metrics_port=free_port()),
        paths=paths,
    )
    secrets = NodeSecrets(certificate=leaf.chain_pem.decode(), key=leaf.key_pem.decode())
    files = home / "layout.json", home / "secrets.json"
    for path, document in zip(files, (layout, secrets), strict=True):
        path.write_bytes(dump_document(document))
    return files

"""HAProxy on a node: a layout turned into its configuration. PURE.

Container runtimes ask it over plain HTTP on loopback; it asks the replicas over mutual TLS. ``haproxy`` runs it. What
every choice here is for: a stream whose replica dies ends by FIN within two seconds, and the runtime gets the rest from
another replica; nothing is asked twice that has answered once; replicas' page caches hold different blobs.
"""

from __future__ import annotations

import hashlib

from sluice.cluster.layout import NodeLayout, Replica
from sluice.config.values import split_address
from sluice.node.files import Files, FileSpec
from sluice.node.haproxy_config import Directive, Section, parse_config, write_config

CONFIG_NAME, RUN_NAME = "haproxy.cfg", "balancer"
ADMIN_SOCKET, MASTER_SOCKET, STATE_FILE = "admin.sock", "master.sock", "servers.state"
"""Relative to the directory that HAProxy is started in: a socket's address has room for 107 characters only."""
BACKEND, FRONTEND, METRICS = "replicas", "runtimes", "metrics"
READY_PATH, METRICS_PATH, LIVE_PATH = "/readyz", "/metrics", "/livez"

THREADS = 2  # each costs memory, and two fill 10 Gbit/s
CONNECTIONS_MAX = 1000
SPILL_STREAMS = 16
"""Requests in progress on this node from which on they go to any replica: so many of one digest are no longer a pull,
and the replica that has it in memory would send all of them."""
RETRIES = 3

CHECK_MS = 500
CHECK_TIMEOUT_MS = 500
CHECK_AGAIN_MS = 200
FALL, RISE = 2, 2
"""Worst case on a small cluster: 500 ms to the next check, 500 until it fails, 200 to the second, 500 until that one
fails: 1.7 s from a replica's freezing to the end of its streams."""
CHECKS_PER_REPLICA_S = 200
"""Handshakes that all nodes together ask of one replica, which take it 0.5 ms each: a tenth of a core."""
CHECKS_PER_NODE_S = 20
ERRORS_TO_DOUBT = 3
SLOW_START_S = 5
WEIGHT = 16
"""Places in the hash for each replica, in sixteens: with 1, one of three replicas got up to 28 % less than its share,
with 16 up to 10 %."""

CONNECT_MS = 1000
"""With the handshake. Less than a frozen replica's detection, at which requests that still wait for it are shut down:
by then they are with another one."""
REQUEST_S = 10  # for a request's head to arrive
KEEP_ALIVE_S = 60  # twice what containerd keeps a connection for
QUEUE_S = 10
SERVER_S = 35
"""Without a byte from a replica, which bears 30 s of that from its upstream. It is what ends the streams of a process
that a reload has replaced when their replica freezes: HAProxy checks nothing in such a process."""
ALIVE_IDLE_S, ALIVE_EVERY_S, ALIVE_TRIES = 2, 1, 2
"""Keep-alive packets on connections to replicas: 4 s until a link that drops everything ends them, where checks are
further apart than that, or are made no more."""
CLIENT_S = 300  # a runtime that reads nothing; as long as a replica itself would wait
CLOSING_S = 10
DRAIN_S = 900  # how long a replaced process may finish its streams

NOBODY = "65534"
RING_BYTES, RING_LINE_BYTES = 65536, 1024
BUFFER_BYTES = 16384
DIGEST_DIGITS = 16
_UNAVAILABLE = '{"errors":[{"code":"UNAVAILABLE","message":"%s"}]}'


def interval_ms(nodes: int, replicas: int) -> int:
    """Time between two checks of one replica by one node, in milliseconds.

    Half a second, until all ``nodes`` together would ask a replica more than CHECKS_PER_REPLICA_S times a second, or a
    node with ``replicas`` would ask them more than CHECKS_PER_NODE_S times: 1,000 nodes check every 5 s. Traffic itself
    tells of a dead replica sooner there (``observe``).
    """
    return max(CHECK_MS, -(-1000 * nodes // CHECKS_PER_REPLICA_S), -(-1000 * replicas // CHECKS_PER_NODE_S))


def config_path(layout: NodeLayout) -> str:
    """Where HAProxy's configuration is."""
    return f"{layout.paths.balancer}/{CONFIG_NAME}"


def run_directory(layout: NodeLayout) -> str:
    """Where HAProxy is started, and keeps sockets, PID and the servers' state."""
    return f"{layout.paths.state}/{RUN_NAME}"


def authorities_path(layout: NodeLayout) -> str:
    """Where the replicas' CA certificates are; named by their content, so that a reload sees old or new, whole."""
    digest = hashlib.sha256((layout.authorities or "").encode()).hexdigest()
    return f"{layout.paths.balancer}/{digest[:DIGEST_DIGITS]}.crt"


def server_name(replica: Replica) -> str:
    """What HAProxy calls a replica, in its states and metrics: ``cp-1_10.0.0.11:5003``."""
    return f"{replica.name}_{replica.host}:{replica.port}"


def render_balancer(layout: NodeLayout, client_pem: str) -> Files:
    """HAProxy's files; none where the balancer is no source. ``client_pem``: path of the node's certificate and key.

    Raises ValueError where the configuration does not read back as it was meant, which no valid layout makes it do.
    """
    if "balancer" not in layout.sources:
        return {}
    sections = balancer_sections(layout, client_pem)
    content = write_config(sections)
    if parse_config(content) != sections:
        raise ValueError("HAProxy's configuration does not read back as it was written")
    assert layout.authorities is not None  # the layout's own rule
    return {
        authorities_path(layout): FileSpec(layout.authorities.encode(), early=True),
        config_path(layout): FileSpec(content, check="haproxy"),
    }


def balancer_sections(layout: NodeLayout, client_pem: str) -> tuple[Section, ...]:
    """The whole configuration, in words. It carries its own digest, which tells ``haproxy`` what a process runs on."""
    first, *rest = _sections(layout, client_pem)
    digest = hashlib.sha256(write_config((first, *rest))).hexdigest()
    named = (*first.directives, ("description", digest[:DIGEST_DIGITS]))
    return (Section(first.kind, first.name, named), *rest)


def _sections(layout: NodeLayout, client_pem: str) -> tuple[Section, ...]:
    return (
        Section("global", None, _global(layout)),
        Section("ring", "events", (("format", "timed"), ("maxlen", str(RING_LINE_BYTES)), ("size", str(RING_BYTES)))),
        Section("defaults", None, _defaults()),
        Section("frontend", FRONTEND, (("bind", f"127.0.0.1:{layout.balancer.port}"), ("default_backend", BACKEND))),
        Section("backend", BACKEND, _backend(layout, client_pem)),
        Section("frontend", METRICS, _metrics(layout)),
    )


def _global(layout: NodeLayout) -> tuple[Directive, ...]:
    # A container's root has no right to become somebody else, and needs none: its capabilities are dropped.
    drop: tuple[Directive, ...] = (("uid", NOBODY), ("gid", NOBODY)) if layout.runner == "agent" else ()
    return (
        ("maxconn", str(CONNECTIONS_MAX)),
        ("nbthread", str(THREADS)),
        ("hard-stop-after", f"{DRAIN_S}s"),
        ("stats", "socket", f"unix@{ADMIN_SOCKET}", "mode", "600", "level", "admin", "expose-fd", "listeners"),
        ("noreuseport",),  # or it would share a port with whoever else has it; a reload hands the sockets over
        ("server-state-file", STATE_FILE),
        ("log", "ring@events", "local0", "notice"),
        ("ssl-default-server-options", "ssl-min-ver", "TLSv1.2"),
        ("tune.ssl.cachesize", "0"),  # for TLS from clients, of which there is none
        ("tune.bufsize", str(BUFFER_BYTES)),
        *drop,
    )


def _defaults() -> tuple[Directive, ...]:
    return (
        ("mode", "http"),
        ("log", "global"),
        ("option", "httplog"),
        ("option", "dontlognull"),
        ("option", "log-separate-errors"),  # what is no error is below the level that is kept
        ("option", "abortonclose"),
        ("option", "redispatch", "1"),
        ("retries", str(RETRIES)),
        ("load-server-state-from-file", "global"),
        ("timeout", "connect", f"{CONNECT_MS}ms"),
        ("timeout", "check", f"{CHECK_TIMEOUT_MS}ms"),
        ("timeout", "http-request", f"{REQUEST_S}s"),
        ("timeout", "http-keep-alive", f"{KEEP_ALIVE_S}s"),
        ("timeout", "queue", f"{QUEUE_S}s"),
        ("timeout", "server", f"{SERVER_S}s"),
        ("timeout", "client", f"{CLIENT_S}s"),
        ("timeout", "client-fin", f"{CLOSING_S}s"),
        ("timeout", "server-fin", f"{CLOSING_S}s"),
        _problem("502", "a registry replica broke off before it answered"),
        _problem("503", "no registry replica can be reached by the balancer on the node"),
        _problem("504", "a registry replica did not answer in time"),
    )


def _problem(status: str, message: str) -> Directive:
    return ("http-error", "status", status, "content-type", "application/json", "string", _UNAVAILABLE % message)


def _backend(layout: NodeLayout, client_pem: str) -> tuple[Directive, ...]:
    host = split_address(layout.virtual)[0]
    key = ("http-request", "set-var(txn.key)")
    return (
        # By digest, which is the path's last part, so that two repositories with one layer use one replica's memory.
        # A tag's name says nothing by itself: "latest" of everything would be on one replica.
        (*key, "path,field(-1,/)"),
        (*key, "path", "unless", "{", "var(txn.key)", "-m", "sub", ":", "}"),
        (*key, "rand(65536)", "if", "{", f"be_conn({BACKEND})", "gt", str(SPILL_STREAMS), "}"),
        ("balance", "hash", "var(txn.key)"),
        ("hash-type", "consistent", "sdbm", "avalanche"),
        ("http-reuse", "always"),
        ("option", "srvtcpka"),
        ("srvtcpka-idle", f"{ALIVE_IDLE_S}s"),
        ("srvtcpka-intvl", f"{ALIVE_EVERY_S}s"),
        ("srvtcpka-cnt", str(ALIVE_TRIES)),
        # Nothing has been answered yet in any of these cases, and only what may be asked twice is.
        ("retry-on", "conn-failure", "empty-response", "503"),
        ("http-request", "disable-l7-retry", "unless", "METH_GET"),
        ("option", "httpchk"),
        ("http-check", "send", "meth", "GET", "uri", READY_PATH, "ver", "HTTP/1.1", "hdr", "host", host),
        ("http-check", "expect", "status", "200"),
        ("default-server", *_health(layout), *_tls(layout, client_pem, host)),
        *(_server(one, number) for one, number in zip(layout.replicas, _numbers(layout.replicas), strict=True)),
    )


def _health(layout: NodeLayout) -> Directive:
    interval = interval_ms(layout.balancer.nodes, len(layout.replicas))
    # Only connections are observed, not answers: a cache answers 502 and 504 for its upstream's failures, which all
    # replicas would then be taken out for. Errors only bring the next check forward: where they take a replica out
    # themselves, the very request that met the last one is shut down with the others, unanswered.
    return (
        "weight", str(WEIGHT), "check",
        "inter", f"{interval}ms", "fastinter", f"{_again_ms(interval)}ms", "downinter", f"{interval}ms",
        "fall", str(FALL), "rise", str(RISE), "slowstart", f"{SLOW_START_S}s",
        "observe", "layer4", "error-limit", str(ERRORS_TO_DOUBT), "on-error", "fastinter",
        "on-marked-down", "shutdown-sessions",
    )  # fmt: skip


def _again_ms(interval: int) -> int:
    """When to check again after a failed check: in the same proportion, so that the cap holds then as well."""
    return interval * CHECK_AGAIN_MS // CHECK_MS


def _tls(layout: NodeLayout, client_pem: str, host: str) -> Directive:
    # HAProxy compares names, never addresses; every replica's certificate has the name that images have.
    return (
        "ssl", "verify", "required", "ca-file", authorities_path(layout), "crt", client_pem,
        "sni", f"str({host})", "check-sni", host, "verifyhost", host,
    )  # fmt: skip


def _server(replica: Replica, number: int) -> Directive:
    return ("server", server_name(replica), replica.authority, "id", str(number))


def _numbers(replicas: tuple[Replica, ...]) -> tuple[int, ...]:
    """Each replica's place in the hash, from its address: the same on all nodes, whatever replicas come or go."""
    taken: list[int] = []
    for replica in replicas:
        number = int.from_bytes(hashlib.sha256(replica.authority.encode()).digest()[:4]) >> 1 or 1
        while number in taken:
            number = number % (2**31 - 1) + 1
        taken.append(number)
    return tuple(taken)


def _metrics(layout: NodeLayout) -> tuple[Directive, ...]:
    return (
        ("bind", f"127.0.0.1:{layout.balancer.metrics_port}"),
        ("monitor-uri", LIVE_PATH),
        ("http-request", "use-service", "prometheus-exporter", "if", "{", "path", METRICS_PATH, "}"),
        ("http-request", "return", "status", "404"),
    )

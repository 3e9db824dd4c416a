"""The servers under test: how each is configured, started and known to be ready.

Each runs with its own defaults: Sluice with access checks, metrics and access log; docker-registry with the
configuration that Debian ships (without its password file), nginx with access log and sendfile. What differs from the
defaults is the address, the certificate and the data directory.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.nginx import run_nginx
from bench.process import Process
from bench.tls import Identity, client_context
from bench.wire import BenchError, Connection

SLUICE = "Sluice"
SLUICE_TOKEN = "Sluice, token"
REGISTRY = "docker-registry"
NGINX = "nginx"

REPOSITORY = "bench/img"
START_TIMEOUT_S = 60.0
_POLL_S = 0.005
_USER, _PASSWORD = "bench", "bench-password-1"


@dataclass(frozen=True)
class Peer:
    """One running server. ``webroot`` is set where content is placed as files instead of pushed."""

    name: str
    port: int
    process: Process
    context: ssl.SSLContext | None = field(repr=False)
    webroot: Path | None = None
    users: bool = False

    def connect(self) -> Connection:
        """A connection that may read and write ``REPOSITORY``."""
        return Connection(self.port, self.context, self.authorization())

    def authorization(self) -> str:
        """A fresh bearer token by the token flow, or nothing where the server is open."""
        return bearer(self) if self.users else ""

    def url(self, path: str) -> str:
        """The address of ``path`` for clients that take URLs."""
        return f"{'https' if self.context else 'http'}://localhost:{self.port}{path}"


def sluice_command(*arguments: str) -> list[str]:
    """The installed command beside the interpreter that runs this."""
    return [str(Path(sys.executable).with_name("sluice")), *arguments]


def sluice_serve(data: Path, port: int, operations_port: int, identity: Identity) -> list[str]:
    """The command line of a server with defaults."""
    return sluice_command(
        *("serve", "--data", str(data)),
        *("--listen", f"127.0.0.1:{port}", "--operations-listen", f"127.0.0.1:{operations_port}"),
        *("--tls-certificate", str(identity.certificate), "--tls-key", str(identity.key)),
    )


def start_sluice(
    directory: Path, identity: Identity, *, users: bool = False, name: str = "", flags: Sequence[str] = ()
) -> Peer:
    """Sluice on an empty data directory; with ``users``, one user exists and the token flow is on. ``flags`` follow
    those that every server gets."""
    data = directory / "data"
    data.mkdir(parents=True, mode=0o700)
    if users:
        add = ["user", "add", _USER, "--role", "write", "--data", str(data), "--password-stdin"]
        added = subprocess.run(sluice_command(*add), input=_PASSWORD, capture_output=True, text=True, check=False)
        if added.returncode != 0:
            raise BenchError(f"sluice user add ended with {added.returncode}: {added.stderr.strip()}")
    port, operations_port = free_port(), free_port()
    process = Process([*sluice_serve(data, port, operations_port, identity), *flags], directory / "log")
    await_ready(process, lambda: sluice_serves(port, operations_port))
    return Peer(
        name or (SLUICE_TOKEN if users else SLUICE), port, process, client_context(identity.certificate), users=users
    )


def start_registry(
    directory: Path, identity: Identity, *, tls: bool = True, remote: str | None = None, name: str = REGISTRY
) -> Peer:
    """Debian's docker-registry (CNCF Distribution 2.8) on an empty directory; a pull-through cache of ``remote`` where
    that is given."""
    directory.mkdir(parents=True)
    port = free_port()
    document: dict[str, Any] = {
        "version": "0.1",
        "log": {"fields": {"service": "registry"}},
        "storage": {
            "cache": {"blobdescriptor": "inmemory"},
            "filesystem": {"rootdirectory": str(directory / "data")},
            "delete": {"enabled": True},
        },
        "http": {
            "addr": f"127.0.0.1:{port}",
            "secret": "bench",
            "headers": {"X-Content-Type-Options": ["nosniff"]},
        },
        "health": {"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}},
    }
    if tls:
        document["http"]["tls"] = {"certificate": str(identity.certificate), "key": str(identity.key)}
    if remote is not None:
        document["proxy"] = {"remoteurl": remote}
    configuration = directory / "config.yml"
    configuration.write_text(json.dumps(document, indent=1))  # JSON is YAML
    process = Process(["docker-registry", "serve", str(configuration)], directory / "log")
    return answering(Peer(name, port, process, client_context(identity.certificate) if tls else None), "/v2/")


_FILES = """default_type application/vnd.oci.image.manifest.v1+json;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;"""


def start_nginx(directory: Path, identity: Identity) -> Peer:
    """nginx over a directory of files laid out like the registry's paths: the practical limit."""
    webroot = directory / "www"
    webroot.mkdir(parents=True)
    (webroot / "ready").write_text("ready")
    port = free_port()
    process = run_nginx(directory, identity, port, _FILES, f"root {webroot};")
    peer = Peer(NGINX, port, process, client_context(identity.certificate), webroot)
    return answering(peer, "/ready")


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sluice_serves(port: int, operations_port: int) -> bool:
    """Whether ``/readyz`` (plain HTTP) says 200 and the registry's own address accepts connections as well."""
    try:
        connection = Connection(operations_port, None)
        try:
            ready = connection.request("GET", "/readyz").status == 200
        finally:
            connection.close()
        if ready:
            socket.create_connection(("127.0.0.1", port)).close()
    except (OSError, BenchError):
        return False
    return ready


def await_ready(process: Process, ready: Callable[[], bool]) -> None:
    """Poll until ``ready``. Raises BenchError with the server's last words where it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.ended or time.monotonic() > deadline:
            words = process.last_words()
            process.stop()
            raise BenchError(f"a server did not become ready within {START_TIMEOUT_S:.0f} s; its log ends:\n{words}")
        time.sleep(_POLL_S)


def bearer(peer: Peer) -> str:
    """Walk the token flow as a client does: challenge, token endpoint with Basic, ``Bearer …``."""
    path = f"/v2/{REPOSITORY}/manifests/latest"
    connection = Connection(peer.port, peer.context)
    challenge = connection.request("GET", path).expect(401).headers["www-authenticate"]
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = "/" + parameters["realm"].split("://", 1)[1].split("/", 1)[1]
    query = f"?service={quote(parameters['service'])}&scope={quote(f'repository:{REPOSITORY}:pull,push')}"
    basic = base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
    answer = connection.request("GET", realm + query, headers={"Authorization": f"Basic {basic}"}).expect(200)
    connection.close()
    return "Bearer " + str(json.loads(answer.body)["token"])


def answering(peer: Peer, path: str) -> Peer:
    """Wait until ``path`` is answered with 200."""

    def answers() -> bool:
        try:
            connection = peer.connect()
        except OSError:
            return False
        status = connection.request("GET", path).status
        connection.close()
        return status == 200

    await_ready(peer.process, answers)
    return peer

"""The nodes' door in each mode, and what happens there when files of certificates change under a running server."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice.oci.digest import Digest
from sluice.pki.cluster import ClusterPki, Purpose
from sluice.pki.durable import write_durably
from sluice.pki.rotation import Step
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer, free_port
from sluice.testing.upstreams import Scheme, Unauthorized, UpstreamContent, UpstreamServer

NOW = datetime.now(UTC)
LAYER = random.Random(4).randbytes(300_001)
BIG = random.Random(5).randbytes(64 << 20)
VIRTUAL = "?ns=registry.sluice.internal%3A5001"
WITHIN_S = 30.0


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Replica(SluiceServer):
    """A server with certificates of a cluster, and its door for nodes on ``host``."""

    def __init__(self, folder: Path, *flags: str, host: str = "127.0.0.1") -> None:
        self.folder, self.host, self.nodes = folder, host, free_port()
        self.pki = ClusterPki.create(folder / "pki", NOW)
        self.tls = True
        self.certify("cp-1")
        self.client_pair = folder / "node.pem"
        issued = self.pki.issue_client(Purpose.NODES, "worker-1", NOW)
        self.client_pair.write_text(issued.certificate + issued.key)
        super().__init__(
            folder / "data",
            *("--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")),
            *("--nodes-listen", f"{host}:{self.nodes}", "--nodes-ca", str(self.pki.bundle_path(Purpose.NODES))),
            *flags,
        )

    def certify(self, name: str) -> None:
        """Give the server another certificate."""
        issued = self.pki.issue_server(name, ["127.0.0.1", "127.0.0.2"], NOW)
        write_durably(self.folder / "tls.key", issued.key.encode())
        write_durably(self.folder / "tls.crt", issued.certificate.encode())

    def ssl_context(self) -> ssl.SSLContext:
        """A client's that trusts the cluster's servers."""
        return ssl.create_default_context(cadata=self.pki.bundle(Purpose.SERVERS))

    def node(self) -> http.client.HTTPSConnection:
        """A node's connection."""
        context = self.ssl_context()
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(self.client_pair)
        return http.client.HTTPSConnection(self.host, self.nodes, timeout=60, context=context)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """What a node gets."""
        connection = self.node()
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def shown(self) -> str:
        """The name in the certificate that a new connection is shown."""
        connection = self.node()
        try:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            subject = (connection.sock.getpeercert() or {})["subject"]
            return str(dict(part[0] for part in subject)["commonName"])  # type: ignore[misc]
        finally:
            connection.close()


@pytest.mark.parametrize("mode", ["local", "proxy", "direct"])
def test_every_mode_serves_nodes(tmp_path: Path, mode: str) -> None:
    """By tag, digest and blob; the virtual address as ``ns`` means the default registry, another one's name its own."""
    content, hub = UpstreamContent(), UpstreamContent()
    image = content.push_image("team/app", "v1", [LAYER])
    hub.push_image("library/busybox", "1", [b"hub"])
    with ExitStack() as stack:
        upstream, other = (stack.enter_context(UpstreamServer(one)) for one in (content, hub))
        flags = ["--registries", f"docker.io={other.address}"]
        if mode != "local":
            flags += ["--mode", mode, "--upstream", upstream.address]
        replica = stack.enter_context(Replica(tmp_path, *flags))
        if mode == "local":
            client = RegistryClient(replica)
            client.push_image("team/app", "v1", [LAYER])
            client.push_image("docker.io/library/busybox", "1", [b"hub"])
            client.close()
        tagged = replica.get(f"/v2/team/app/manifests/v1{VIRTUAL}")
        assert 200 == tagged[0]
        digest = image if mode != "local" else Digest.of(tagged[1])
        for suffix in ("", VIRTUAL):
            assert tagged == replica.get(f"/v2/team/app/manifests/{digest}{suffix}")
            assert (200, LAYER) == replica.get(
                f"/v2/team/app/blobs/{Digest.of(LAYER)}{suffix}", Authorization="Basic ?"
            )
        assert (200, b"hub") == replica.get(f"/v2/library/busybox/blobs/{Digest.of(b'hub')}?ns=docker.io")
        assert 404 == replica.get(f"/v2/team/absent/manifests/v1{VIRTUAL}")[0]


@pytest.mark.parametrize("mode", ["proxy", "direct"])
def test_an_upstream_that_refuses_us_does_not_make_us_challenge(tmp_path: Path, mode: str) -> None:
    """Its 401 is ours to solve: containerd would answer a challenge with its users' passwords."""
    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    with UpstreamServer(content) as upstream:
        upstream.faults = [Unauthorized(users={"ann": "secret"}, scheme=Scheme.BASIC)]
        with Replica(tmp_path, "--mode", mode, "--upstream", upstream.address) as replica:
            for path in ("manifests/v1", f"blobs/{Digest.of(LAYER)}", "tags/list"):
                status, _ = replica.get(f"/v2/team/app/{path}")
                assert status in {403, 404, 502, 503}, (path, status)


@pytest.mark.parametrize("mode", ["proxy", "direct"])
def test_nodes_are_not_asked_for_the_upstreams_password(tmp_path: Path, mode: str) -> None:
    """``cache.authorize: upstream`` is about callers with passwords; a node's certificate is enough."""
    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    (tmp_path / "password").write_text("ours\n")
    flags = ["--upstream-user", "sluice", "--upstream-password-file", str(tmp_path / "password")]
    flags += ["--cache-authorize", "upstream", "--access-challenge", "basic", "--access-anonymous-pull"]
    with UpstreamServer(content) as upstream:
        upstream.faults = [Unauthorized(users={"sluice": "ours"}, scheme=Scheme.BASIC)]
        with Replica(tmp_path, "--mode", mode, "--upstream", upstream.address, *flags) as replica:
            assert (200, LAYER) == replica.get(f"/v2/team/app/blobs/{Digest.of(LAYER)}")
            client = RegistryClient(replica)
            assert 403 == client.request("GET", f"/v2/team/app/blobs/{Digest.of(LAYER)}").status
            client.close()


def test_a_door_is_on_its_own_address_only(tmp_path: Path) -> None:
    """A door on 127.0.0.2 is not on 127.0.0.1, and two doors may have the same port on different addresses."""
    pki = ClusterPki.create(tmp_path / "peers", NOW)
    ca = str(pki.bundle_path(Purpose.PEERS))
    with Replica(tmp_path, host="127.0.0.2") as replica:
        assert 200 == replica.get("/v2/")[0]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", replica.nodes), timeout=5)
        replica.stop()
        replica.flags = [*replica.flags, "--peers-listen", f"127.0.0.1:{replica.nodes}", "--peers-ca", ca]
        replica.start()
        assert 200 == replica.get("/v2/")[0]
        socket.create_connection(("127.0.0.1", replica.nodes), timeout=5).close()


def test_a_transfer_outlives_the_certificate_that_it_began_with(tmp_path: Path) -> None:
    """A blob that is half read goes on to its last byte while the certificate and the CA of nodes change."""
    with Replica(tmp_path) as replica:
        client = RegistryClient(replica)
        digest = client.push_blob("big", BIG)
        client.close()
        slow = replica.node()
        slow.request("GET", f"/v2/big/blobs/{digest}")
        response = slow.getresponse()
        got = response.read(1 << 20)
        replica.certify("cp-2")
        replica.pki.take(Purpose.NODES, Step.TRUST, NOW)
        until(lambda: replica.shown() == "cp-2")
        until(lambda: replica.operations("/metrics")[1].count("sluice_door_authority_not_after_seconds{") == 2)
        assert BIG == got + response.read()
        slow.close()


def test_a_mistake_changes_nothing(tmp_path: Path) -> None:
    """A CA file that cannot be used, or a key of another certificate, is reported; what was in force stays, and what is
    right beside it is taken. Once it is mended it is taken too."""
    with Replica(tmp_path) as replica:
        bundle = replica.pki.bundle_path(Purpose.NODES)
        good = bundle.read_bytes()
        bundle.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n")
        until(lambda: "nodes.ca" in replica.log.read_text())
        assert 200 == replica.get("/v2/")[0]
        replica.certify("cp-2")
        until(lambda: replica.shown() == "cp-2")
        write_durably(tmp_path / "tls.key", (tmp_path / "pki" / "nodes" / "1.key").read_bytes())
        until(lambda: "is not the key of tls.certificate" in replica.log.read_text())
        assert ("cp-2", 200) == (replica.shown(), replica.get("/v2/")[0])
        replica.certify("cp-3")
        write_durably(bundle, good)
        until(lambda: replica.shown() == "cp-3")
        assert 200 == replica.get("/v2/")[0]

"""CAs and certificates exchanged under load: no request fails, on new connections or on kept ones."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice.pki.cluster import ClusterPki, Issued, Purpose
from sluice.pki.durable import write_durably
from sluice.pki.rotation import Rotation, Stage, Step
from sluice.testing.client import OCI_MANIFEST, RegistryClient, digest_of
from sluice.testing.server import SluiceServer, free_port

NOW = datetime.now(UTC)
BLOBS = [os.urandom(size) for size in (100, 10_000, 300_000)]
CLIENTS = 4
WITHIN_S = 60.0
AUTHORITY = re.compile(r'sluice_door_authority_not_after_seconds\{authority="nodes:([0-9a-f]{64})"\}')


def until(reached: Callable[[], bool]) -> None:
    """Wait; raises AssertionError where it does not come to that."""
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Replica(SluiceServer):
    """A server with the cluster's certificates and a door for nodes."""

    def __init__(self, folder: Path, pki: ClusterPki) -> None:
        self.folder, self.pki, self.nodes = folder, pki, free_port()
        self.serve_with(pki.issue_server("cp-1", ["127.0.0.1"], NOW))
        super().__init__(
            folder / "data",
            *("--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")),
            *("--nodes-listen", f"127.0.0.1:{self.nodes}", "--nodes-ca", str(pki.bundle_path(Purpose.NODES))),
        )

    def serve_with(self, issued: Issued) -> None:
        """Put a certificate where the server looks for it: two files, which do not match for a moment."""
        write_durably(self.folder / "tls.key", issued.key.encode())
        write_durably(self.folder / "tls.crt", issued.certificate.encode())

    def ssl_context(self) -> ssl.SSLContext:
        """A client's that trusts the cluster's servers."""
        return ssl.create_default_context(cadata=self.pki.bundle(Purpose.SERVERS))

    def trusts(self) -> tuple[str, ...]:
        """The nodes' CAs that are in force."""
        return tuple(AUTHORITY.findall(self.operations("/metrics")[1]))


class Node:
    """What a node has, replaced as a whole: whom it trusts, and the certificate that it shows."""

    def __init__(self, folder: Path, trusted: str, issued: Issued) -> None:
        self.folder = folder
        self.update(trusted, issued)

    def update(self, trusted: str, issued: Issued) -> None:
        """From the next connection on."""
        self.trusted, self.issued = trusted, issued
        context = ssl.create_default_context(cadata=trusted)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        pair = self.folder / f"{hashlib.sha256(issued.certificate.encode()).hexdigest()}.pem"
        pair.write_text(issued.certificate + issued.key)
        context.load_cert_chain(pair)
        self.context = context


class Load:
    """Clients of the nodes' door that pull all the time; every second one opens a connection for each request."""

    def __init__(self, replica: Replica, node: Node, manifest: str) -> None:
        self.replica, self.node, self.manifest = replica, node, manifest
        self.failures: list[str] = []
        self.pulled = [0] * CLIENTS
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._pull, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def passes(self, requests: int = 20) -> None:
        """Return when every client has made so many more."""
        wanted = [count + requests for count in self.pulled]
        until(lambda: all(now >= then for now, then in zip(self.pulled, wanted, strict=True)))

    def _pull(self, number: int) -> None:
        connection: http.client.HTTPSConnection | None = None
        for path, digest in self._things():
            if self._ended.is_set():
                break
            if connection is None:
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", self.replica.nodes, timeout=30, context=self.node.context
                )
            try:
                connection.request("GET", path, headers={"Accept": OCI_MANIFEST})
                response = connection.getresponse()
                body = response.read()
                if (200, digest) != (response.status, digest_of(body)):
                    self.failures.append(f"{path}: {response.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{path}: {error!r}")
                connection.close()
                connection = None
                continue
            self.pulled[number] += 1
            if number % 2 or response.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _things(self) -> Iterator[tuple[str, str]]:
        while True:
            yield "/v2/app/manifests/v1", self.manifest
            for blob in BLOBS:
                yield f"/v2/app/blobs/{digest_of(blob)}", digest_of(blob)


def rotate_servers(replica: Replica, node: Node, load: Load) -> None:
    """The CA of servers: the nodes trust both, the replica changes over, the nodes trust the new one alone."""
    pki = replica.pki
    pki.take(Purpose.SERVERS, Step.TRUST, NOW)
    load.passes()
    node.update(pki.bundle(Purpose.SERVERS), node.issued)
    load.passes()
    pki.take(Purpose.SERVERS, Step.SIGN, NOW, trusting={"n1": node.trusted})
    issued = pki.issue_server("cp-1", ["127.0.0.1"], NOW)
    replica.serve_with(issued)
    new = pki.fingerprints(Purpose.SERVERS)[1]
    until(lambda: _shown(replica, node) == issued.certificate)
    load.passes()
    pki.delivered(Purpose.SERVERS, "cp-1")
    assert Rotation(Stage.STABLE, 2) == pki.take(Purpose.SERVERS, Step.RETIRE, NOW)
    assert (new,) == pki.fingerprints(Purpose.SERVERS)
    node.update(pki.bundle(Purpose.SERVERS), node.issued)
    load.passes()


def rotate_nodes(replica: Replica, node: Node, load: Load) -> None:
    """The CA of nodes: the replica trusts both, the nodes change over, the replica trusts the new one alone."""
    pki = replica.pki
    pki.take(Purpose.NODES, Step.TRUST, NOW)
    until(lambda: set(pki.fingerprints(Purpose.NODES)) == set(replica.trusts()))
    load.passes()
    pki.take(Purpose.NODES, Step.SIGN, NOW, trusting={"cp-1": pki.bundle(Purpose.NODES)})
    load.passes()
    node.update(node.trusted, pki.issue_client(Purpose.NODES, "n1", NOW))
    load.passes()
    assert Rotation(Stage.STABLE, 2) == pki.take(Purpose.NODES, Step.RETIRE, NOW, shown={"n1": node.issued.certificate})
    until(lambda: pki.fingerprints(Purpose.NODES) == replica.trusts())
    load.passes()


def _ask(replica: Replica, node: Node) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", replica.nodes, context=node.context)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status
    finally:
        connection.close()


def _shown(replica: Replica, node: Node) -> str:
    """The certificate that a new connection is shown, with its CA as it was issued."""
    connection = http.client.HTTPSConnection("127.0.0.1", replica.nodes, timeout=30, context=node.context)
    connection.connect()
    assert isinstance(connection.sock, ssl.SSLSocket)
    der = connection.sock.getpeercert(binary_form=True)
    connection.close()
    assert der is not None
    shown = ssl.DER_cert_to_PEM_cert(der)
    issued = (replica.folder / "tls.crt").read_text()
    return issued if issued.startswith(shown) else shown


def test_authorities_are_rotated_under_load(tmp_path: Path) -> None:
    """All steps for the servers' CA and the nodes' CA while clients pull: none fails, and the old ones are refused."""
    pki = ClusterPki.create(tmp_path / "pki", NOW)
    replica = Replica(tmp_path, pki)
    first = pki.issue_client(Purpose.NODES, "n1", NOW)
    node = Node(tmp_path, pki.bundle(Purpose.SERVERS), first)
    distrusting = node.trusted
    with replica:
        client = RegistryClient(replica)
        manifest = client.push_image("app", "v1", BLOBS)
        client.close()
        with Load(replica, node, manifest) as load:
            load.passes()
            rotate_servers(replica, node, load)
            rotate_nodes(replica, node, load)
        assert [] == load.failures
        for late in (Node(tmp_path, node.trusted, first), Node(tmp_path, distrusting, node.issued)):
            with pytest.raises(OSError, match=r"certificate|unknown ca|reset|Broken|EOF|closed"):
                _ask(replica, late)
    print(f"{sum(load.pulled)} requests")

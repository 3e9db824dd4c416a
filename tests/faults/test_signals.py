"""SIGTERM and SIGHUP while requests are under way: no transfer notices either."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from faults.wire import BROKEN
from sluice.pki.authority import Authority, open_authority
from sluice.pki.leaf import issue_server, parse_names
from sluice.testing.client import OCTETS, RegistryClient, digest_of
from sluice.testing.server import STOP_S, SluiceServer

BLOB = os.urandom(1 << 20) * 64
PART_BYTES = 4 << 20
PAUSE_S = 0.1  # between parts: 64 MiB in 1.6 s and more
NOTICE_S = 10.0


def slowly(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PART_BYTES):
        time.sleep(PAUSE_S)
        yield data[start : start + PART_BYTES]


def read_slowly(response: http.client.HTTPResponse) -> bytes:
    """The digest of the body, read in parts with pauses."""
    hasher = hashlib.sha256()
    while part := response.read(PART_BYTES):
        hasher.update(part)
        time.sleep(PAUSE_S)
    return hasher.digest()


def exit_code(server: SluiceServer) -> int:
    """Wait for the end of a server that was told to stop."""
    assert server.process is not None
    return server.process.wait(STOP_S)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_sigterm_waits_for_transfers(tmp_path: Path) -> None:
    """A pull and a push of 64 MiB that are under way end well, new clients are turned away, and the exit code is 0."""
    other = BLOB[::-1]
    with (
        SluiceServer(tmp_path / "data", tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
        contextlib.closing(RegistryClient(server)) as pusher,
    ):
        digest = client.push_blob("signals", BLOB)
        pushed: list[int] = []

        def push() -> None:
            url = f"/v2/signals/blobs/uploads/?digest={digest_of(other)}"
            headers = {"Content-Type": OCTETS, "Content-Length": str(len(other))}
            pushed.append(pusher.request("POST", url, slowly(other), headers).status)

        pushing = threading.Thread(target=push)
        pushing.start()
        connection = client.connect()
        connection.request("GET", f"/v2/signals/blobs/{digest}")
        with contextlib.closing(connection), connection.getresponse() as response:
            time.sleep(5 * PAUSE_S)
            os.kill(server.pid, signal.SIGTERM)
            assert read_slowly(response) == hashlib.sha256(BLOB).digest()
        pushing.join()
        assert pushed == [201]
        assert exit_code(server) == 0
        server.start()
        assert client.request("HEAD", f"/v2/signals/blobs/{digest_of(other)}").status == 200
        assert "Traceback" not in server.log.read_text("utf-8", "replace")


def test_sigterm_turns_new_clients_away(tmp_path: Path) -> None:
    """While a transfer is finished, nobody new gets in, and readiness says so."""
    with SluiceServer(tmp_path / "data", tls=False) as server, contextlib.closing(RegistryClient(server)) as client:
        digest = client.push_blob("signals", BLOB)
        connection = client.connect()
        connection.request("GET", f"/v2/signals/blobs/{digest}")
        with contextlib.closing(connection), connection.getresponse() as response:
            os.kill(server.pid, signal.SIGTERM)
            deadline = time.monotonic() + NOTICE_S
            while accepts(server.port):
                assert time.monotonic() < deadline, "new connections are still accepted"
                time.sleep(0.05)
            assert server.operations("/readyz")[0] == 503
            assert server.operations("/livez")[0] == 200
            assert hashlib.sha256(response.read()).digest() == hashlib.sha256(BLOB).digest()
        assert exit_code(server) == 0


def test_sigterm_waits_no_longer_than_the_deadline(tmp_path: Path) -> None:
    """A reader that has stopped reading is cut after ``limits.drain_s``; the exit code is 0 all the same."""
    with (
        SluiceServer(tmp_path / "data", "--limits-drain-s", "1", tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        digest = client.push_blob("signals", BLOB)
        connection = client.connect()
        connection.request("GET", f"/v2/signals/blobs/{digest}")
        with contextlib.closing(connection), connection.getresponse() as response:
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 20
            with contextlib.suppress(*BROKEN):
                assert len(response.read()) < len(BLOB)


class GivenCertificate(SluiceServer):
    """A server with a certificate of ours, which ``replace`` replaces as an operator would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority: Authority = open_authority(directory, "ca", "a CA of the tests", datetime.now(UTC))
        self.serial = self.replace()
        files = ("--tls-certificate", str(directory / "server.crt"), "--tls-key", str(directory / "server.key"))
        super().__init__(directory / "data", *files)

    @property
    def ca(self) -> Path:
        """The CA of the given certificate."""
        return self.directory / "ca.crt"

    def replace(self) -> int:
        """Put another certificate in place by rename; its serial number."""
        leaf = issue_server(self.authority, parse_names(["localhost", "127.0.0.1"]), datetime.now(UTC))
        for name, data in (("server.crt", leaf.chain_pem), ("server.key", leaf.key_pem)):
            staged = self.directory / f"{name}.new"
            staged.write_bytes(data)
            staged.replace(self.directory / name)
        return x509.load_pem_x509_certificate(leaf.chain_pem).serial_number

    def served_serial(self) -> int:
        """The serial number of the certificate that a new connection gets."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.ssl_context().wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            found = secured.getpeercert()
        assert found is not None
        return int(str(found["serialNumber"]), 16)


class Load:
    """Clients that ask for a manifest again and again, on one connection each or on a new one every time."""

    def __init__(self, server: SluiceServer, path: str, expected: str) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._server, self._path, self._expected = server, path, expected
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(fresh,)) for fresh in (True, True, False, False)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, fresh: bool) -> None:
        connection = RegistryClient(self._server).connect()
        while not self._over.is_set():
            try:
                connection.request("GET", self._path)
                body = connection.getresponse().read()
                if digest_of(body) != self._expected:
                    self.failures.append(f"other bytes: {body[:100]!r}")
                self.answered += 1
            except (*BROKEN, ssl.SSLError) as error:
                self.failures.append(f"{'a new' if fresh else 'a kept'} connection failed: {error!r}")
                connection.close()
            if fresh:
                connection.close()
        connection.close()


def test_a_certificate_is_replaced_under_load_without_a_failed_request(tmp_path: Path) -> None:
    """Three replacements with SIGHUP: no request fails, no transfer is cut, new connections see the new certificate."""
    with GivenCertificate(tmp_path) as server, contextlib.closing(RegistryClient(server)) as client:
        digest = client.push_blob("signals", BLOB)
        manifest = client.push_image("signals", "tag")
        assert server.served_serial() == server.serial
        connection = client.connect()
        connection.request("GET", f"/v2/signals/blobs/{digest}")
        with contextlib.closing(connection), connection.getresponse() as response:
            with Load(server, "/v2/signals/manifests/tag", manifest) as load:
                for _ in range(3):
                    replace_and_wait(server)
            assert read_slowly(response) == hashlib.sha256(BLOB).digest()
        assert load.failures == []
        assert load.answered > 100
        assert server.stop() == 0


def replace_and_wait(server: GivenCertificate) -> None:
    serial = server.replace()
    os.kill(server.pid, signal.SIGHUP)
    deadline = time.monotonic() + NOTICE_S
    while server.served_serial() != serial:
        assert time.monotonic() < deadline, "the new certificate is not served"
        time.sleep(0.05)


def test_a_broken_certificate_leaves_the_old_one_in_service(tmp_path: Path) -> None:
    """SIGHUP with a file that is no certificate is reported and changes nothing."""
    with GivenCertificate(tmp_path) as server:
        (tmp_path / "server.crt").write_text("not a certificate")
        os.kill(server.pid, signal.SIGHUP)
        deadline = time.monotonic() + NOTICE_S
        while "the certificate stays as it is" not in server.log.read_text():
            assert time.monotonic() < deadline, "nothing was reported"
            time.sleep(0.05)
        assert server.served_serial() == server.serial

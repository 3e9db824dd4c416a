"""Connections on which nothing is sent give their place back; those in use keep it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer

BLOB_BYTES = 64 * 1024 * 1024
IDLE_S = 2


def test_silent_connections_are_closed_and_a_pausing_reader_is_not(tmp_path: Path) -> None:
    """A TCP connection without a byte and a TLS session without a request end after ``limits.header_idle_s``; a reader
    who pauses for longer than that in the middle of a blob still gets all of it."""
    with SluiceServer(tmp_path / "data", "--limits-header-idle-s", str(IDLE_S)) as server:
        client = RegistryClient(server)
        digest = client.push_blob("team/app", bytes(BLOB_BYTES))
        client.close()
        reader = client.connect()
        reader.request("GET", f"/v2/team/app/blobs/{digest}")
        response = reader.getresponse()
        received = len(response.read(1000))
        with (
            socket.create_connection(("127.0.0.1", server.port), 60) as silent,
            server.ssl_context().wrap_socket(
                socket.create_connection(("127.0.0.1", server.port), 60), server_hostname="127.0.0.1"
            ) as introduced,
        ):
            assert (b"", b"") == (silent.recv(1), introduced.recv(1))
        received += len(response.read())
        reader.close()
        assert BLOB_BYTES == received
        assert "sluice_connections_swept_total 2.0" in server.operations("/metrics")[1]


def test_signals_after_the_first_do_not_turn_a_drain_into_a_crash(tmp_path: Path) -> None:
    """SIGTERM while a transfer drains, again and again: the transfer completes and the exit code is 0."""
    server = SluiceServer(tmp_path / "data").start()
    client = RegistryClient(server)
    digest = client.push_blob("team/app", bytes(BLOB_BYTES))
    client.close()
    reader = client.connect()
    reader.request("GET", f"/v2/team/app/blobs/{digest}")
    response = reader.getresponse()
    received = len(response.read(1000))
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    while "stopping" not in server.log.read_text():
        pass
    for _ in range(3):
        server.process.send_signal(signal.SIGTERM)
    received += len(response.read())
    reader.close()
    assert (BLOB_BYTES, 0) == (received, server.process.wait(60))

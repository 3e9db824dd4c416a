"""Slow and rude clients: others are served meanwhile, and memory stays bounded.

What is asserted is bytes and answers, never time.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.crowd import MIB, crowd, open_socket, receive, request_head, steady_bytes
from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.client import OCTETS, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

SENDERS = 64
READERS = 64
IDLE = 2000
WRONG_PASSWORDS = 1000
GUESSERS = 500  # so few checks are waited for one after the other that the test is short
GIB = 1 << 30
ZEROS = bytes(MIB)
PAUSED_GROWTH_BYTES = 16 * MIB
"""What one reader that has paused may cost: the slices in flight, and what the allocator keeps."""
READERS_GROWTH_BYTES = (64 + 32) * MIB
"""``limits.streams_bytes`` and room for the connections themselves."""
SENDERS_GROWTH_BYTES = 48 * MIB
IDLE_BYTES_EACH = 64 * 1024
"""A connection over TLS: its buffers and its state."""


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield ZEROS


def push_zeros(client: RegistryClient, size: int) -> str:
    """A big blob that costs nobody any memory; its digest."""
    hasher = hashlib.sha256()
    for part in zeros(size):
        hasher.update(part)
    digest = f"sha256:{hasher.hexdigest()}"
    headers = {"Content-Type": OCTETS, "Content-Length": str(size)}
    answer = client.request("POST", f"/v2/slow/blobs/uploads/?digest={digest}", zeros(size), headers)
    assert answer.status == 201, (answer.status, answer.body)
    return digest


def assert_others_are_served(server: SluiceServer, rounds: int = 20) -> None:
    """A new client pushes and pulls as if it were alone."""
    with contextlib.closing(RegistryClient(server)) as client:
        for number in range(rounds):
            data = os.urandom(50_000)
            digest = client.push_image("others", f"tag{number}", [data])
            assert digest_of(client.request("GET", f"/v2/others/manifests/tag{number}").body) == digest
            assert client.request("GET", f"/v2/others/blobs/{digest_of(data)}").body == data
    assert server.operations("/readyz?write")[0] == 200


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SluiceServer]:
    with SluiceServer(tmp_path / "data", "--no-log-access") as running:
        assert_others_are_served(running)  # what a first use costs is nobody's growth
        yield running
        assert "Traceback" not in running.log.read_text("utf-8", "replace")


@pytest.fixture
def client(server: SluiceServer) -> Iterator[RegistryClient]:
    with contextlib.closing(RegistryClient(server)) as speaker:
        yield speaker


def test_a_paused_reader_costs_a_few_mebibytes_and_gets_every_byte(
    server: SluiceServer, client: RegistryClient
) -> None:
    """Backpressure: in the middle of 1 GiB a reader stops; memory does not follow, and the rest comes when it reads."""
    digest = push_zeros(client, GIB)
    before = steady_bytes(server)
    connection = client.connect()
    connection.request("GET", f"/v2/slow/blobs/{digest}")
    hasher = hashlib.sha256()
    with contextlib.closing(connection), connection.getresponse() as response:
        for _ in range(GIB // 2 // MIB):
            hasher.update(response.read(MIB))
        assert steady_bytes(server) - before < PAUSED_GROWTH_BYTES
        while part := response.read(MIB):
            hasher.update(part)
    assert f"sha256:{hasher.hexdigest()}" == digest


def test_many_paused_readers_share_a_bounded_memory(server: SluiceServer, client: RegistryClient) -> None:
    """64 readers that take 1 MiB of 256 MiB and pause cost no more than ``limits.streams_bytes`` and their sockets."""
    digest = push_zeros(client, 256 * MIB)
    before = steady_bytes(server)
    with crowd(server, READERS, request_head("GET", f"/v2/slow/blobs/{digest}"), receive_bytes=64 * 1024) as readers:
        for reader in readers:
            assert receive(reader, MIB).startswith(b"HTTP/1.1 200")
        assert_others_are_served(server)
        assert steady_bytes(server) - before < READERS_GROWTH_BYTES


def test_senders_of_one_byte_a_second_hold_nobody_up(server: SluiceServer, client: RegistryClient) -> None:
    """64 uploads that crawl: others are served, memory is bounded, and each session stands at its true offset."""
    sessions = [client.start_upload("slow") for _ in range(SENDERS)]
    before = steady_bytes(server)
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(
                open_socket(server, request_head("PATCH", session, f"Content-Type: {OCTETS}", "Content-Length: 1000"))
            )
            for session in sessions
        ]
        for _ in range(4):
            for sender in senders:
                sender.sendall(b"x")
            time.sleep(1)
        assert_others_are_served(server)
        assert steady_bytes(server) - before < SENDERS_GROWTH_BYTES
    assert [standing(client, session, 4) for session in sessions] == [4] * SENDERS


def test_idle_connections_cost_little_and_hold_nobody_up(server: SluiceServer) -> None:
    """2,000 connections that send nothing: others are served, and each costs a bounded amount."""
    before = steady_bytes(server)
    with crowd(server, IDLE):
        assert_others_are_served(server)
        assert steady_bytes(server) - before < IDLE * IDLE_BYTES_EACH


def standing(client: RegistryClient, session: str, expected: int) -> int:
    """The bytes that a session holds, asked until they are ``expected``, or for two seconds."""
    held = -1
    for _ in range(40):
        answer = client.request("GET", session)
        assert answer.status == 204
        held = int(answer.headers["range"].split("-")[1]) + 1
        if held == expected:
            break
        time.sleep(0.05)
    return held


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_client_that_goes_away_leaves_its_upload_at_its_true_offset(tmp_path: Path, tls: bool) -> None:
    """What came before the connection broke is kept to the byte, and the upload goes on from there."""
    body = os.urandom(10 * MIB)
    sent = 3 * MIB + 17
    with (
        SluiceServer(tmp_path / "data", tls=tls) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        session = client.start_upload("slow")
        head = request_head("PATCH", session, f"Content-Type: {OCTETS}", f"Content-Length: {len(body)}")
        with open_socket(server, head + body[:sent]):
            pass
        offset = standing(client, session, sent)
        # Over TLS the client leaves the server's session tickets unread. Closing then resets the connection (RFC 2525
        # section 2.17), and what the server had not read by then is gone: it never came.
        assert 0 < offset <= sent if tls else offset == sent
        assert client.request("GET", f"/v2/slow/blobs/{digest_of(body)}").status == 404
        rest = {"Content-Type": OCTETS, "Content-Range": f"{offset}-{len(body) - 1}"}
        assert client.request("PUT", f"{session}?digest={digest_of(body)}", body[offset:], rest).status == 201
        assert client.request("GET", f"/v2/slow/blobs/{digest_of(body)}").body == body


def basic(name: str, password: str) -> str:
    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


def guess(server: SluiceServer, guesser: int, statuses: list[int]) -> None:
    with contextlib.closing(RegistryClient(server)) as client:
        for number in range(WRONG_PASSWORDS // GUESSERS):
            client.authorization = basic("alice", f"wrong {guesser} {number}")
            statuses.append(client.request("GET", "/v2/").status)


def test_a_thousand_wrong_passwords_hold_nobody_up(tmp_path: Path) -> None:
    """Each gets 401, or 429 where too many wait, and a client that is known is served all the while."""
    with SluiceServer(tmp_path / "data", "--no-log-access", tls=False) as server:
        for name in ("alice", "bob"):
            user = {"name": name, "password": f"{name}'s password", "role": "write"}
            call(server.data / SOCKET_NAME, "user add", user)
        with contextlib.closing(RegistryClient(server, basic("bob", "bob's password"))) as bob:
            bob.push_image("slow", "tag")
            statuses: list[int] = []
            guessers = [threading.Thread(target=guess, args=(server, number, statuses)) for number in range(GUESSERS)]
            for guesser in guessers:
                guesser.start()
            served = []
            while any(guesser.is_alive() for guesser in guessers):
                served.append(bob.request("GET", "/v2/slow/manifests/tag").status)
        assert len(statuses) == WRONG_PASSWORDS
        assert set(statuses) == {401, 429}
        assert set(served) == {200}
        assert len(served) > 100
        assert "Traceback" not in server.log.read_text("utf-8", "replace")


def test_health_answers_when_every_connection_is_taken(tmp_path: Path) -> None:
    """The operations listener has connections of its own, and the registry goes on when the others have left."""
    with SluiceServer(tmp_path / "data", "--limits-connections", "50", tls=False) as server:
        with crowd(server, 50):
            with contextlib.closing(RegistryClient(server, timeout_s=2)) as client, pytest.raises(TimeoutError):
                client.request("GET", "/v2/")
            assert server.operations("/livez") == (200, "ok\n")
            assert server.operations("/readyz") == (200, "ok\n")
            assert "sluice_" in server.operations("/metrics")[1]
        assert_others_are_served(server, rounds=1)


def test_a_connection_that_never_asks_is_closed(tmp_path: Path) -> None:
    """``limits.header_idle_s`` ends a connection whose next request does not come whole."""
    answered = request_head("GET", "/v2/")
    with SluiceServer(tmp_path / "data", "--limits-header-idle-s", "1", tls=False) as server:
        for started in (b"G", b"GET /v2/ HTTP/1.1\r\nHost: ", answered, answered + b"GET /v2/ HTTP/1.1\r\n"):
            with open_socket(server, started) as sock:
                assert receive(sock, MIB).count(b"HTTP/1.1 ") == started.count(answered)


def test_a_body_that_stands_still_is_refused(tmp_path: Path) -> None:
    """``limits.body_idle_s`` answers 408 to an upload that stops coming, and keeps what came."""
    with (
        SluiceServer(tmp_path / "data", "--limits-body-idle-s", "1", tls=False) as server,
        contextlib.closing(RegistryClient(server)) as client,
    ):
        session = client.start_upload("slow")
        head = request_head("PATCH", session, f"Content-Type: {OCTETS}", "Content-Length: 1000")
        with open_socket(server, head + b"x" * 100) as sock, http.client.HTTPResponse(sock) as response:
            response.begin()
            assert response.status == 408
        assert standing(client, session, 100) == 100


def test_a_reader_that_stands_still_for_too_long_is_cut(tmp_path: Path) -> None:
    """``limits.response_idle_s`` ends a response that nobody reads; the connection ends short."""
    with SluiceServer(tmp_path / "data", "--limits-response-idle-s", "1", tls=False) as server:
        with contextlib.closing(RegistryClient(server)) as client:
            digest = push_zeros(client, 64 * MIB)
        head = request_head("GET", f"/v2/slow/blobs/{digest}")
        with open_socket(server, head, receive_bytes=64 * 1024) as reader, contextlib.suppress(ConnectionResetError):
            time.sleep(3)
            assert len(receive(reader, 65 * MIB)) < 64 * MIB
        assert "took no byte for too long" in server.log.read_text()

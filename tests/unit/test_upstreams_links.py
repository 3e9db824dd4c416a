"""Dead addresses, and the relay that shapes the bytes of a real server."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from upstream_client import TIMEOUT_S, get, is_quiet, no_thread_left, read_exactly, read_to_end, receive, send

from sluice.testing.client import digest_of
from sluice.testing.upstreams import (
    Cut,
    GeneratedBlob,
    Relay,
    Shape,
    Stall,
    UpstreamContent,
    UpstreamServer,
    blackhole,
    make_tls,
    refused_address,
    silent,
    unresolvable_address,
    wrong_ca,
)

BLOB = GeneratedBlob(8 * 1024 * 1024, seed=3)
OPEN = Shape()
PATH = f"/v2/app/blobs/{BLOB.digest}"


@contextmanager
def relayed(shape: Shape = OPEN) -> Iterator[tuple[UpstreamServer, Relay]]:
    """A server, a relay before it, and no thread left of either."""
    content = UpstreamContent()
    content.hold_blob("app", BLOB)
    with no_thread_left(), UpstreamServer(content) as upstream, Relay(upstream.port, shape) as relay:
        yield upstream, relay


def place(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    assert parts.hostname is not None
    return parts.hostname, parts.port or 443


def test_refused() -> None:
    """The connection is refused, each time."""
    with refused_address() as address:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(place(address), TIMEOUT_S)


def test_unresolvable() -> None:
    """The name does not resolve."""
    with pytest.raises(socket.gaierror):
        socket.create_connection(place(unresolvable_address()), TIMEOUT_S)


def test_blackhole() -> None:
    """Connecting comes to nothing, not even to a refusal."""
    with blackhole() as address:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection(place(address), 0.2)


def test_silent() -> None:
    """Connecting succeeds, and nothing comes."""
    with silent() as address, socket.create_connection(place(address), TIMEOUT_S) as sock:
        sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
        assert is_quiet(sock)


def test_a_wrong_authority(tmp_path: Path) -> None:
    """Who trusts another authority does not get through the handshake."""
    trusted = make_tls(tmp_path / "trusted")
    with no_thread_left(), wrong_ca(UpstreamContent(), tmp_path / "wrong") as upstream:
        context = trusted.client_context()
        connection = http.client.HTTPSConnection("127.0.0.1", upstream.port, timeout=TIMEOUT_S, context=context)
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.request("GET", "/v2/")
        connection.close()
    assert [] == upstream.requests


def test_an_open_link_passes_everything_and_counts_it() -> None:
    """The body is whole; down is head and body, up is the request."""
    with relayed() as (upstream, relay):
        raw = read_to_end(send(relay.port, PATH))
        while relay.open_connections:
            time.sleep(0.01)
    assert (BLOB.size, str(BLOB.digest)) == (len(raw.body), digest_of(raw.body))
    assert (len(raw.head) + 4 + BLOB.size, False) == (relay.bytes_down, raw.reset)
    assert relay.bytes_up > len(PATH)
    assert (1, 1) == (relay.connections, upstream.gets(BLOB.digest))


@pytest.mark.parametrize("shape", [Shape(bytes_per_s=20e6), Shape(total_bytes_per_s=20e6)])
def test_a_limited_link_is_no_faster(shape: Shape) -> None:
    """8 MiB at 20 MB/s do not come in less than a third of a second."""
    with relayed(shape) as (_, relay):
        began = time.monotonic()
        body = get(relay.port, PATH).body
        assert time.monotonic() - began > 0.33
    assert str(BLOB.digest) == digest_of(body)


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("after", [0, 1000, 300_000])
def test_a_link_is_cut_after_so_many_octets(after: int, rst: bool) -> None:
    """With a FIN or a RST, so many times; the server sees its client leave."""
    with relayed(Shape(cut_after=after, rst=rst, times=1)) as (upstream, relay):
        raw = read_to_end(send(relay.port, PATH))
        came = len(raw.head) + (4 if after else 0) + len(raw.body)
        assert (after, rst) == (came, raw.reset)
        upstream.wait_idle()
        assert upstream.requests[0].left_early
        assert BLOB.size == len(get(relay.port, PATH).body)


def test_a_link_stalls_until_its_shape_changes() -> None:
    """So many octets, silence, and then the rest."""
    with relayed(Shape(stall_after=5000)) as (_, relay):
        sock = send(relay.port, PATH)
        read = receive(sock, 5000)
        assert (5000, True) == (len(read), is_quiet(sock))
        relay.shape = Shape()
        rest = read_to_end(sock)
    assert str(BLOB.digest) == digest_of((read + rest.head + rest.body)[-BLOB.size :])


def test_a_client_that_leaves_a_stalled_link_frees_it() -> None:
    """The server sees it leave too."""
    with relayed(Shape(stall_after=5000)) as (upstream, relay):
        sock = send(relay.port, PATH)
        receive(sock, 5000)
        sock.close()
        upstream.wait_idle()
        while relay.open_connections:
            time.sleep(0.01)
    assert upstream.requests[0].left_early


@pytest.mark.parametrize("rst", [False, True])
def test_all_open_links_are_cut_at_once(rst: bool) -> None:
    """While the server is silent, and with the end that is asked for."""
    with relayed() as (upstream, relay):
        upstream.faults = (Stall(1000),)
        sock = send(relay.port, PATH)
        read_exactly(sock, 1000)
        relay.cut(rst=rst)
        assert rst == read_to_end(sock).reset
        upstream.wait_idle()
        assert upstream.requests[0].left_early


def test_a_link_goes_down_and_comes_back() -> None:
    """Stopped in the middle of an answer, whose client reads to an early end; then everything is as before."""
    with relayed(Shape(stall_after=5000)) as (_, relay):
        sock = send(relay.port, PATH)
        receive(sock, 5000)
        relay.stop()
        assert b"" == read_to_end(sock).head
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", relay.port), TIMEOUT_S)
        relay.shape = Shape()
        relay.start()
        assert BLOB.size == len(get(relay.port, PATH).body)


def test_a_link_to_nobody_resets() -> None:
    """Where the server refuses, the relay's client gets a RST."""
    with refused_address() as address, no_thread_left(), Relay(place(address)[1]) as relay:
        assert read_to_end(socket.create_connection(("127.0.0.1", relay.port), TIMEOUT_S)).reset


@pytest.mark.parametrize("rst", [False, True])
def test_a_cut_under_tls_has_exactly_so_many_octets(tmp_path: Path, rst: bool) -> None:
    """Behind them comes a bare FIN without the end of TLS, or a RST."""
    content = UpstreamContent()
    content.hold_blob("app", BLOB)
    tls = make_tls(tmp_path)
    with no_thread_left(), UpstreamServer(content, tls=tls, faults=(Cut(5000, rst=rst),)) as upstream:
        sock = tls.client_context().wrap_socket(
            socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S), server_hostname="127.0.0.1"
        )
        sock.sendall(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
        body = read_exactly(sock, 5000)
        # Asked below TLS: Python's ssl module reports either as the same early end.
        end = pytest.raises(ConnectionResetError) if rst else nullcontext()
        with sock, end:
            assert b"" == socket.socket.recv(sock, 1)
    assert bytes(BLOB.read(0, 5000)) == body


def test_stalls_under_tls_end_with_the_client_or_the_server(tmp_path: Path) -> None:
    """The one that leaves is noted, the one that stays is cut when the server stops."""
    content = UpstreamContent()
    tls = make_tls(tmp_path)
    with no_thread_left(), UpstreamServer(content, tls=tls, faults=(Stall(),)) as upstream:
        leaving, staying = (
            tls.client_context().wrap_socket(
                socket.create_connection(("127.0.0.1", upstream.port), TIMEOUT_S), server_hostname="127.0.0.1"
            )
            for _ in range(2)
        )
        for number, sock in enumerate((leaving, staying)):
            sock.sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
            upstream.wait_for(lambda number=number: len(upstream.requests) > number)  # type: ignore[misc]
        leaving.close()
        upstream.wait_for(lambda: upstream.requests[0].ended is not None)
        upstream.stop()
        assert b"" == staying.recv(1)
        staying.close()
    assert [True, False] == [request.left_early for request in upstream.requests]

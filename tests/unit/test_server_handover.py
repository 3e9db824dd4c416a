"""Handing an address over from one listening socket to the next."""

from __future__ import annotations

import os
import socket

import pytest

from sluice.server.handover import count, prefer

CONNECTIONS = 100
HOSTS = [("127.0.0.1", socket.AF_INET), ("127.0.0.3", socket.AF_INET), ("::1", socket.AF_INET6)]


def listener(host: str, family: socket.AddressFamily, port: int = 0) -> socket.socket:
    """As the server library binds one."""
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    found.listen(CONNECTIONS * 2)
    found.setblocking(False)
    return found


def shares(host: str, port: int, *sockets: socket.socket) -> list[int]:
    """How many of so many new connections each of these gets."""
    clients = [socket.create_connection((host, port)) for _ in range(CONNECTIONS)]
    found = [0] * len(sockets)
    for place, one in enumerate(sockets):
        while sum(found) < CONNECTIONS:
            try:
                one.accept()[0].close()
            except BlockingIOError:
                break
            found[place] += 1
    for client in clients:
        client.close()
    return found


@pytest.mark.parametrize(("host", "family"), HOSTS)
def test_the_successor_gets_every_connection(host: str, family: socket.AddressFamily) -> None:
    """From the instant at which it listens, and its own successor after it; a lone socket gets all of them anyway."""
    old = listener(host, family)
    port = old.getsockname()[1]
    for _ in range(3):
        assert 1 == count(host, port)
        prefer(host, port, 1)
        assert [CONNECTIONS] == shares(host, port, old)
        new = listener(host, family, port)
        assert 2 == count(host, port)
        assert [0, CONNECTIONS] == shares(host, port, old, new)
        old.close()
        assert [CONNECTIONS] == shares(host, port, new)
        old = new
    old.close()
    assert 0 == count(host, port)


def test_sockets_are_known_by_their_exact_address() -> None:
    """The same port on another address, a connection and a socket that does not listen are somebody else's."""
    one = listener("127.0.0.1", socket.AF_INET)
    port = one.getsockname()[1]
    other = listener("127.0.0.2", socket.AF_INET, port)
    with one, other, socket.create_connection(("127.0.0.1", port)), socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        idle.bind(("127.0.0.1", port))
        assert [1, 1, 0] == [count(host, port) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]


def test_looking_leaves_no_descriptor_open() -> None:
    """However often it is asked, the process has as many open files as before."""
    with listener("127.0.0.1", socket.AF_INET) as one:
        port = one.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            count("127.0.0.1", port)
            prefer("127.0.0.1", port, 1)
        assert before == len(os.listdir("/proc/self/fd"))

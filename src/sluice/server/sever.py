"""Cutting connections from outside the server library.

Two kinds of connection would stay for ever: a response whose reader has stopped taking bytes (a zero TCP window never
times out while the peer answers probes), and one that never sends a request (its timer for a request's head starts with
the first byte). So they are looked up among the process's own sockets and shut down. Neither happens on a healthy path.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

from sluice.server.descriptors import own_sockets
from sluice.server.exchange import Exchange

log = logging.getLogger("sluice.server")

Peer = tuple[str, int]
_TCP_INFO_BYTES = 60
_LAST_DATA = struct.Struct("44xI4xI")  # struct tcp_info of linux/tcp.h: tcpi_last_data_sent, tcpi_last_data_recv, in ms


def sever(x: Exchange) -> None:
    """Shut down the connection of this exchange's client."""
    host, port = x.scope["client"]
    for peer, sock in connections({int(x.scope["server"][1])}):
        if peer == (host, int(port)):
            sock.shutdown(socket.SHUT_RDWR)
            log.warning("client %s:%s took no byte for too long (limits.response_idle_s); connection cut", host, port)
            return


def sweep(ports: Collection[int], busy: Collection[Peer], idle_s: float) -> int:
    """Shut down connections to our ``ports`` that nobody in ``busy`` is using and on which no byte went either way for
    ``idle_s`` seconds. Returns how many. Blocks for some microseconds each: call it in a thread."""
    cut = 0
    for peer, sock in connections(ports):
        if peer not in busy and idle_for_s(sock) > idle_s:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
                cut += 1
    return cut


def idle_for_s(sock: socket.socket) -> float:
    """Seconds since the last byte in either direction (tcp(7), TCP_INFO)."""
    sent_ms, received_ms = _LAST_DATA.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES))
    return float(min(sent_ms, received_ms)) / 1000


def connections(ports: Collection[int]) -> Iterator[tuple[Peer, socket.socket]]:
    """This process's established TCP connections to its own ``ports``, each open while it is looked at."""
    for sock in own_sockets():
        with suppress(OSError), sock:
            if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.getsockname()[1] in ports:
                yield sock.getpeername()[:2], sock

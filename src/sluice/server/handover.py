"""From one listening socket to the next on the same address, so that no connection is lost between them.

The server library binds with SO_REUSEPORT, and the kernel spreads new connections over all sockets of an address by
hash. When one of them closes, what waits in its queue is reset, and the library drops what is in the middle of a TLS
handshake. So before a successor listens, the kernel is told to give it all connections from that instant on (socket(7),
SO_ATTACH_REUSEPORT_CBPF), by a program of one instruction that returns its place in the group. From a client that has
seen the new certificates on, everybody sees them; and the one before has time to finish what it has begun.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import os
import socket
import struct
from contextlib import suppress

from sluice.server.descriptors import own_sockets

log = logging.getLogger("sluice.server")

SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h; Python's socket module has no name for it
_RETURN = 0x06  # BPF_RET | BPF_K of linux/bpf_common.h


def listening(host: str, port: int) -> list[socket.socket]:
    """This process's listening sockets on exactly this address, as duplicates that the caller closes."""
    found: dict[int, socket.socket] = {}  # by inode: a duplicate may get a number that is still to come
    for one in own_sockets():
        inode = os.fstat(one.fileno()).st_ino
        if inode not in found and _listens(one) and _is_at(one, host, port):
            found[inode] = one
        else:
            one.close()
    return list(found.values())


def _listens(one: socket.socket) -> bool:
    tcp = one.family in {socket.AF_INET, socket.AF_INET6} and one.type == socket.SOCK_STREAM
    return tcp and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _is_at(one: socket.socket, host: str, port: int) -> bool:
    bound, at = one.getsockname()[:2]
    return at == port and ipaddress.ip_address(bound) == ipaddress.ip_address(host)


def count(host: str, port: int) -> int:
    """How many sockets of this process listen on exactly this address."""
    sockets = listening(host, port)
    for one in sockets:
        one.close()
    return len(sockets)


def prefer(host: str, port: int, place: int) -> None:
    """Give all new connections to the socket that was, or will be, the ``place``-th (from 0) to listen on this address.

    As long as that one does not listen, and when there is no such place any more because an earlier socket has closed,
    any of them gets them: what the kernel does without a program. Where it takes none, that is logged.
    """
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, place))
    program = struct.pack("@HP", 1, ctypes.addressof(instruction))
    sockets = listening(host, port)
    with suppress(IndexError):
        try:
            sockets[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
        except OSError as error:
            log.warning("the kernel steers no connections (%s): some may be reset in a renewal", error.strerror)
    for one in sockets:
        one.close()

"""The process's own sockets, found among its descriptors (proc(5), ``/proc/self/fd``).

Granian gives the application no handle on a socket. ``sever`` looks for connections to cut, ``handover`` for those that
listen; both are done off the healthy path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator


def own_sockets() -> Iterator[socket.socket]:
    """All of them, as duplicates that the caller closes. What is closed meanwhile is left out."""
    for name in os.listdir("/proc/self/fd"):
        one = _duplicate(int(name))
        if one is not None:
            yield one


def _duplicate(descriptor: int) -> socket.socket | None:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None  # gone meanwhile
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)  # no socket
        return None

"""Addresses at which no registry answers, each dead in another way. Text for ``--upstream``.

Those that hold a socket are context managers: while one is open, nobody else can come to life there.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sluice.testing.upstreams.content import UpstreamContent
from sluice.testing.upstreams.server import UpstreamServer
from sluice.testing.upstreams.tls import make_tls

FILLERS_MAX = 8
FILL_S = 0.2
SILENT_BACKLOG = 256


@contextmanager
def refused_address() -> Iterator[str]:
    """Connections are refused at once: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield _address(taken)


def unresolvable_address() -> str:
    """A name that does not resolve, and never will (RFC 6761 section 6.4)."""
    return f"https://registry-{secrets.token_hex(8)}.invalid"


@contextmanager
def blackhole() -> Iterator[str]:
    """Connections are neither accepted nor refused: the backlog is full, so Linux drops every SYN."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(FILLERS_MAX):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(FILL_S)
            try:
                filler.connect(listening.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError(f"a backlog of 0 took {FILLERS_MAX} connections")
        yield _address(listening)


@contextmanager
def silent() -> Iterator[str]:
    """Connections succeed, and then nothing is read or sent, not even the end of a TLS handshake."""
    with socket.create_server(("127.0.0.1", 0), backlog=SILENT_BACKLOG) as listening:
        yield _address(listening)


def wrong_ca(content: UpstreamContent, directory: Path) -> UpstreamServer:
    """A correct upstream with a certificate of an authority, made in ``directory``, that nobody has been told of."""
    return UpstreamServer(content, tls=make_tls(directory))


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"http://{host}:{port}"

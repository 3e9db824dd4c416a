"""The laboratory's way to a registry outside: an HTTP proxy between its network and the machine's; a program.

Its listening socket belongs to the laboratory's network and is its standard input; what it connects to, it reaches by
the machine's own network, where it runs. So the laboratory needs no route, and the machine no rule. CONNECT alone
(RFC 9110 section 9.3.6): registries speak TLS, and the bytes pass as they are. Needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

HEAD_BYTES_MAX = 16 << 10
HEAD_S = 10.0
CONNECT_S = 10.0
PIECE_BYTES = 256 << 10


async def main() -> None:
    """Serve until the end."""
    listener = socket.socket(fileno=sys.stdin.fileno())
    server = await asyncio.start_server(serve, sock=listener, limit=HEAD_BYTES_MAX)
    await server.serve_forever()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client: read where it wants to go, and pass everything on."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S)
        method, target, _ = head.decode("latin-1").split("\r\n")[0].split(" ")
        if method != "CONNECT":
            await _answer(writer, "405 Method Not Allowed", f"{method} is not served here, only CONNECT")
            return
        host, _, port = target.rpartition(":")
        await _pass_on(reader, writer, host.strip("[]"), int(port))
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
        print(f"relay: {error or type(error).__name__}", file=sys.stderr, flush=True)
    finally:
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    try:
        there, back = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_S)
    except (OSError, TimeoutError) as error:
        await _answer(writer, "502 Bad Gateway", f"{host}:{port} cannot be reached: {error or 'no answer'}")
        raise
    print(f"relay: to {host}:{port}", file=sys.stderr, flush=True)
    try:
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
    finally:
        back.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while piece := await source.read(PIECE_BYTES):
        target.write(piece)
        await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = f"{text}\n".encode()
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


if __name__ == "__main__":
    asyncio.run(main())

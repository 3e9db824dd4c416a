"""The admin socket: how ``sluice user``, ``gc``, ``fsck`` and ``tags`` reach a running server.

Only one process may hold the data directory, so the CLI asks that process to do the work. The socket is a file in the
data directory (mode 0700), so whoever may read the data may administer it and nobody else can connect.

One request per connection, as lines of JSON: ``{"command": …, "arguments": {…}}`` in; any number of
``{"progress": …}`` and one last ``{"result": …}`` or ``{"error": {"code": …, "message": …}}`` out. The handler
of a client that goes away is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sluice.errors import BodyTooLarge, Denied, RequestInvalid, SluiceError, TooManyRequests, Unavailable

SOCKET_NAME = "admin.sock"
LINE_BYTES = 1024 * 1024
"""Longest line in either direction, in bytes; a longer result is an error, a longer progress line is dropped."""
CLIENTS = 8
"""Connections served at once; one more is told to try again."""
REQUEST_S = 10.0
"""How long a client may take to send its request, in seconds."""
PROGRESS_BYTES = 256 * 1024
"""Unsent bytes from which on progress lines are dropped for a client that does not read, in bytes."""
SUN_PATH_BYTES = 107
"""Longest path that a socket address can hold (unix(7)), in bytes."""

Arguments = Mapping[str, Any]
Progress = Callable[[object], None]
Handler = Callable[[Arguments, Progress], Awaitable[object]]
"""Takes the arguments and a function for progress (safe from any thread); returns what JSON can hold."""

log = logging.getLogger("sluice.admin")


class AdminServer:
    """Serves ``handlers`` by name on a unix socket until closed. Start it only while holding the data directory."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and listen. A socket that a dead server left behind is replaced: the caller holds the lock."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            with _reachable(self._path) as name:
                listener.bind(name)
            self._path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=LINE_BYTES)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Stop listening, end the commands in progress and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader, writer)
            writer.write(_line(answer))
            await writer.drain()
        except OSError:
            log.debug("admin client went away")
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                writer.write(_failure(Unavailable("the server is stopping: repeat the command once it runs again")))
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, object]:
        try:
            request = await _request(reader)  # first: closing on unread bytes would reset the client before its answer
            self._admit()
            handler, arguments = self._choose(request)
            return {"result": await self._run(handler, arguments, reader, writer)}
        except SluiceError as error:
            return {"error": {"code": error.code, "message": error.message}}
        except ConnectionError:
            raise
        except Exception:  # the boundary: a mistake of ours must not cost the client its answer
            log.exception("admin command failed")
            return {"error": {"code": "UNKNOWN", "message": "the server failed; its log has the reason"}}

    def _admit(self) -> None:
        if len(self._clients) > CLIENTS:
            raise TooManyRequests(f"{CLIENTS} admin commands run already: wait for one to end")

    def _choose(self, request: Mapping[str, Any]) -> tuple[Handler, Arguments]:
        command, arguments = request.get("command"), request.get("arguments", {})
        if not isinstance(command, str) or command not in self._handlers:
            known = ", ".join(sorted(self._handlers))
            raise RequestInvalid(f"command {command!r} is unknown: write one of {known}")
        if not isinstance(arguments, dict):
            raise RequestInvalid("arguments must be an object")
        return self._handlers[command], arguments

    async def _run(
        self, handler: Handler, arguments: Arguments, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> object:
        """Run the handler; stop it when the client hangs up, for then nobody waits for the result."""
        work = asyncio.ensure_future(handler(arguments, _progress(writer)))
        hangup = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, hangup}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and hangup.result() == b"":
                raise ConnectionResetError("client went away")
            return await work
        finally:
            for task in (work, hangup):
                task.cancel()
            await asyncio.gather(work, hangup, return_exceptions=True)


def _progress(writer: asyncio.StreamWriter) -> Progress:
    loop = asyncio.get_running_loop()

    def send(line: bytes) -> None:
        transport = writer.transport
        if not transport.is_closing() and transport.get_write_buffer_size() < PROGRESS_BYTES:
            writer.write(line)

    def report(value: object) -> None:
        line = _line({"progress": value})
        if len(line) <= LINE_BYTES:
            loop.call_soon_threadsafe(send, line)

    return report


async def _request(reader: asyncio.StreamReader) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(REQUEST_S):
            raw = await reader.readline()
    except TimeoutError:
        raise RequestInvalid(f"no request came within {REQUEST_S:.0f} s") from None
    except ValueError:  # asyncio's word for a line over the limit
        raise RequestInvalid(f"the request is longer than {LINE_BYTES} bytes") from None
    document = _parse(raw)
    if document is None:
        raise RequestInvalid("the request is not one line with a JSON object")
    return document


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _line(document: Mapping[str, object]) -> bytes:
    line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    if len(line) > LINE_BYTES and "result" in document:
        return _failure(BodyTooLarge(f"the result is longer than {LINE_BYTES} bytes: ask for less at a time"))
    return line


def _failure(error: SluiceError) -> bytes:
    return _line({"error": {"code": error.code, "message": error.message}})


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address however deep the data directory is."""
    if len(os.fsencode(path)) <= SUN_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def reach(path: Path) -> socket.socket | None:
    """Connect to the server that holds the data directory; None if none runs."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _reachable(path) as name:
            connection.connect(name)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        return None
    except PermissionError:
        connection.close()
        raise Denied(f"{path} may be used by the server's own user and root only: run this as one of them") from None
    return connection


def exchange(
    connection: socket.socket, command: str, arguments: Arguments, on_progress: Progress | None = None
) -> object:
    """Send one command over a connection from ``reach``, close it, return the result. Blocks.

    Raises the error that the server answered with, or Unavailable if it went away.
    """
    with connection, connection.makefile("rb") as lines:
        try:
            connection.sendall(_line({"command": command, "arguments": dict(arguments)}))
            while (raw := lines.readline(LINE_BYTES + 1)).endswith(b"\n"):
                document = _parse(raw) or {}
                if "result" in document:
                    return document["result"]
                if "error" in document:
                    raise _revived(document["error"])
                if on_progress is not None:
                    on_progress(document.get("progress"))
        except OSError as error:
            raise Unavailable(f"the server broke off during {command}: {error.strerror}; look at its log") from error
    raise Unavailable(f"the server broke off during {command}: look at its log, then repeat the command")


def call(path: Path, command: str, arguments: Arguments, on_progress: Progress | None = None) -> object:
    """``reach`` and ``exchange`` in one; raises Unavailable if no server runs."""
    connection = reach(path)
    if connection is None:
        raise Unavailable(f"no server listens on {path}: start one with sluice serve")
    return exchange(connection, command, arguments, on_progress)


def _revived(error: Mapping[str, str]) -> SluiceError:
    """Make the error again that the server had, as far as its code tells."""
    return _BY_CODE.get(error["code"], Unavailable)(error["message"])


# Codes are shared. The first class that needs no more than a message stands for its code, or the most general one.
_BY_CODE: Mapping[str, type[SluiceError]] = {
    **{kind.code: kind for kind in reversed(SluiceError.__subclasses__()) if "__init__" not in vars(kind)},
    **{kind.code: kind for kind in (Unavailable, TooManyRequests)},
}

"""The admin socket: one command per connection, bounded, private, and honest about failure."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sluice.errors import ConfigInvalid, RequestInvalid, SluiceError, TooManyRequests, Unavailable
from sluice.server import admin
from sluice.server.admin import AdminServer, Arguments, Progress, call, reach


async def echo(arguments: Arguments, progress: Progress) -> object:
    for number in range(int(arguments.get("steps", 0))):
        progress({"step": number})
    await asyncio.sleep(0)
    return dict(arguments)


async def refuse(_: Arguments, __: Progress) -> object:
    raise ConfigInvalid("name is 'x': write another")


async def fail(_: Arguments, __: Progress) -> object:
    raise ZeroDivisionError


async def large(_: Arguments, __: Progress) -> object:
    return "x" * admin.LINE_BYTES


@asynccontextmanager
async def serving(path: Path, **more: admin.Handler) -> AsyncIterator[None]:
    server = AdminServer(path, {"echo": echo, "refuse": refuse, "fail": fail, "large": large, **more})
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def at(path: Path, test: Callable[[], Awaitable[Any]], **more: admin.Handler) -> Any:
    """Run a test beside a server."""

    async def both() -> Any:
        async with serving(path, **more):
            return await test()

    return asyncio.run(both())


async def called(path: Path, command: str, **arguments: object) -> object:
    # The default executor may have fewer threads than a test has clients.
    with ThreadPoolExecutor(1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, call, path, command, arguments)


async def failure(path: Path, command: str) -> SluiceError:
    with pytest.raises(SluiceError) as caught:
        await called(path, command)
    return caught.value


def test_result_and_progress_come_back(tmp_path: Path) -> None:
    """A command's progress arrives in order, then its result."""
    path, seen = tmp_path / "admin.sock", list[object]()
    result = at(path, lambda: asyncio.to_thread(call, path, "echo", {"steps": 3, "word": "ä"}, seen.append))
    assert (result, seen) == ({"steps": 3, "word": "ä"}, [{"step": 0}, {"step": 1}, {"step": 2}])


@pytest.mark.parametrize(
    ("command", "kind", "words"),
    [
        ("refuse", ConfigInvalid, "name is 'x': write another"),
        ("fail", SluiceError, "the server failed; its log has the reason"),
        ("large", SluiceError, "the result is longer than 1048576 bytes: ask for less at a time"),
        ("nothing", SluiceError, "command 'nothing' is unknown: write one of echo, fail, large, refuse"),
    ],
)
def test_errors_come_back_as_they_were(command: str, kind: type[SluiceError], words: str, tmp_path: Path) -> None:
    """An error arrives with its message, a configuration error as such; a mistake of ours without its insides."""
    path = tmp_path / "admin.sock"
    error = at(path, lambda: failure(path, command))
    assert (isinstance(error, kind), error.message) == (True, words)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"{\n", "the request is not one line with a JSON object"),
        (b"[1]\n", "the request is not one line with a JSON object"),
        (b"[" * 100_000 + b"\n", "the request is not one line with a JSON object"),
        (b'{"command": 1}\n', "command 1 is unknown: write one of echo, fail, large, refuse"),
        (b'{"command": "echo", "arguments": []}\n', "arguments must be an object"),
        (b"x" * (admin.LINE_BYTES + 1), "the request is longer than 1048576 bytes"),
    ],
    ids=["cut", "array", "deep", "number", "list", "long"],
)
def test_nonsense_gets_an_answer(sent: bytes, words: str, tmp_path: Path) -> None:
    """Whatever is sent, the answer is one line that says what is wrong."""
    path = tmp_path / "admin.sock"

    def talk() -> dict[str, Any]:
        connection = reach(path)
        assert connection is not None
        with connection, connection.makefile("rb") as lines:
            connection.sendall(sent)
            return dict(json.loads(lines.readline()))

    answer = at(path, lambda: asyncio.to_thread(talk))
    assert answer == {"error": {"code": RequestInvalid.code, "message": words}}


def test_socket_is_private_and_goes(tmp_path: Path) -> None:
    """The socket is its owner's alone while the server runs, and gone afterwards."""
    path = tmp_path / "admin.sock"

    async def mode() -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert (at(path, mode), path.exists(), reach(path)) == (0o600, False, None)


def test_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    """What a killed server left behind answers nobody, and the next server takes its place."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert reach(path) is None
    assert at(path, lambda: called(path, "echo", a=1)) == {"a": 1}


def test_deep_directories_are_reached(tmp_path: Path) -> None:
    """A data directory whose path is longer than a socket address is served all the same."""
    path = tmp_path / ("d" * 100) / ("e" * 100) / "admin.sock"
    path.parent.mkdir(parents=True)
    assert at(path, lambda: called(path, "echo", a=1)) == {"a": 1}


def test_clients_are_bounded(tmp_path: Path) -> None:
    """One command more than the limit is told to wait; the others are served."""
    path, gate = tmp_path / "admin.sock", asyncio.Event()

    held = asyncio.Semaphore(0)

    async def hold(_: Arguments, __: Progress) -> object:
        held.release()
        await gate.wait()
        return "held"

    async def crowd() -> tuple[list[object], SluiceError]:
        holding = [asyncio.create_task(called(path, "hold")) for _ in range(admin.CLIENTS)]
        for _ in holding:
            await held.acquire()
        error = await failure(path, "echo")
        gate.set()
        return list(await asyncio.gather(*holding)), error

    results, error = at(path, crowd, hold=hold)
    assert (results, type(error)) == (["held"] * admin.CLIENTS, TooManyRequests)


def test_hanging_up_cancels_the_command(tmp_path: Path) -> None:
    """When the client goes away, its handler is cancelled."""
    path, started, cancelled = tmp_path / "admin.sock", asyncio.Event(), asyncio.Event()

    async def hold(_: Arguments, __: Progress) -> object:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return None

    async def leave() -> bool:
        connection = reach(path)
        assert connection is not None
        connection.sendall(b'{"command": "hold"}\n')
        await started.wait()
        connection.close()
        async with asyncio.timeout(30):
            return await cancelled.wait()

    assert at(path, leave, hold=hold) is True


def test_stopping_tells_the_client(tmp_path: Path) -> None:
    """A command in progress when the server stops ends with an error that says so."""
    path, started = tmp_path / "admin.sock", asyncio.Event()

    async def hold(_: Arguments, __: Progress) -> object:
        started.set()
        await asyncio.sleep(60)
        return None

    async def scenario() -> SluiceError:
        async with serving(path, hold=hold):
            waiting = asyncio.create_task(failure(path, "hold"))
            await started.wait()
        return await waiting

    error = asyncio.run(scenario())
    assert (type(error), error.message) == (
        Unavailable,
        "the server is stopping: repeat the command once it runs again",
    )

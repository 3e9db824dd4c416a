"""One question at a time: whoever asks what somebody asks already waits for that answer.

A flight belongs to the application. Its askers may all leave, and it lands all the same; ``close`` ends what still
flies.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

from sluice.errors import SluiceError, Unavailable, UpstreamTimeout

T = TypeVar("T")

FLIGHTS_MAX = 1024  # questions at once

_log = logging.getLogger(__name__)


def again(error: SluiceError) -> SluiceError:
    """The same error for one more caller: an instance that is raised many times would collect every traceback."""
    return copy.copy(error).with_traceback(None)


class Flights:
    """Single flight by key. For one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def flying(self, key: Hashable) -> bool:
        """Whether somebody asks this just now."""
        return key in self._tasks

    def launch(self, key: Hashable, ask: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """The flight of ``key``, begun where there was none; raises Unavailable beyond ``FLIGHTS_MAX``."""
        known = self._tasks.get(key)
        if known is not None:
            return cast("asyncio.Task[T]", known)
        if self._closed:
            raise Unavailable("the cache is closed: the server is stopping")
        if len(self._tasks) >= FLIGHTS_MAX:
            raise Unavailable(f"{FLIGHTS_MAX} questions to upstreams are waiting for an answer: try again")
        task = asyncio.create_task(ask(), name=f"ask {key}")
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._landed(key, done))
        return task

    async def ask(self, key: Hashable, ask: Callable[[], Coroutine[Any, Any, T]], deadline_s: float) -> T:
        """The answer of the flight, waited for no longer than ``deadline_s``; raises UpstreamTimeout then, and what
        the flight raises."""
        task = self.launch(key, ask)
        return await patiently(lambda: _answer(task), deadline_s)

    async def close(self) -> None:
        """End all flights; idempotent."""
        self._closed = True
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _landed(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            error = task.exception()  # taken here, so that nobody has to be waiting for it
            if error is not None and not isinstance(error, SluiceError):
                _log.error("%s failed", task.get_name(), exc_info=error)


async def patiently(wait: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """Wait up to ``deadline_s`` seconds; raises UpstreamTimeout."""
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            return await wait()
    except TimeoutError:
        if not deadline.expired():
            raise
        raise UpstreamTimeout(
            f"the upstream has not answered within {deadline_s:g} s: it is asked on, try again"
        ) from None


async def _answer(task: asyncio.Task[T]) -> T:
    """Wait for a task that others wait for too: leaving does not end it, and its end by ``close`` is no cancellation
    of the one who waits."""
    await asyncio.wait([task])
    if task.cancelled():
        raise Unavailable("the cache is closed: the server is stopping")
    error = task.exception()
    if isinstance(error, SluiceError):
        raise again(error)
    return task.result()

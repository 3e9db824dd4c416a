"""Asks an upstream that is taken for dead, so that it is known when it is back although nobody wants anything.

One for each ``endpoint``; ``registry`` owns them. While all is well there is no task: the breaker wakes it when it
opens, and it ends when the breaker closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from sluice.errors import SluiceError
from sluice.upstream.endpoint import Endpoint

PAUSE_MIN_S = 0.2
"""Between two looks at the breaker: somebody else's probe may be under way when the next one is due."""

_log = logging.getLogger(__name__)


class Prober:
    """``close`` ends it, also for a breaker that opens later."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._changed = asyncio.Event()
        endpoint.breaker.on_change = self._wake

    async def close(self) -> None:
        """Ask no more; idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _wake(self) -> None:
        self._changed.set()
        idle = self._task is None or self._task.done()
        if idle and self._endpoint.breaker.is_open and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        breaker = self._endpoint.breaker
        _log.warning("the upstream %s is taken for dead: %s", self._endpoint.address, breaker.trouble)
        while (retry_at := breaker.retry_at) is not None:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(PAUSE_MIN_S, retry_at - self._clock())):
                    await self._changed.wait()
            if breaker.is_due(self._clock()):
                with contextlib.suppress(SluiceError):
                    await self._endpoint.ping()
        _log.info("the upstream %s answers again", self._endpoint.address)

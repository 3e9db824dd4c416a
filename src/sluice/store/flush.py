"""The background flush of a spool: its readers go on at the upstream's speed, the disk gets its bytes at the ceiling's.

A push has no use for it, since its client waits for the disk at the end anyway: there ``SessionFile`` flushes as it
writes. A spool's bytes are read from the page cache as they come, and only how far they may be ahead of the disk is
bounded (``store.pace``).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from sluice.errors import SluiceError
from sluice.store.pace import FLUSH_BYTES, Pacer
from sluice.store.session import SessionFile
from sluice.store.threads import submit


class BackgroundFlush:
    """Of one session's file; for its event loop."""

    def __init__(self, file: SessionFile, pacer: Pacer) -> None:
        self._file = file
        self._pacer = pacer
        self._task: asyncio.Task[None] | None = None
        self._flushed = asyncio.Event()  # replaced with each flush

    async def room(self) -> None:
        """Wait while too much is ahead of the disk."""
        while self._task is not None and self._file.unflushed > self._pacer.ahead_bytes:
            await self._flushed.wait()

    def begin(self, executor: Executor) -> None:
        """Flush what is worth it in threads of ``executor``, unless that goes on already."""
        if self._task is None and self._file.unflushed >= FLUSH_BYTES:
            self._task = asyncio.create_task(self._run(executor), name=f"flush {self._file.path.name}")

    async def end(self, *, at_once: bool = False) -> None:
        """Wait until the disk was asked to take everything but the last few bytes; ``at_once``: leave it."""
        if self._task is not None:
            if at_once:
                self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, executor: Executor) -> None:
        try:
            while self._file.unflushed >= FLUSH_BYTES:
                await asyncio.sleep(self._pacer.take(FLUSH_BYTES))
                if not await asyncio.wrap_future(submit(executor, self._file.flush, FLUSH_BYTES)):
                    return
                self._flushed.set()
                self._flushed = asyncio.Event()
        except SluiceError:
            pass  # the file knows, and tells whoever writes or commits next
        finally:
            self._task = None
            self._flushed.set()

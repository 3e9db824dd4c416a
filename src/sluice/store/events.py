"""Who is told that a repository has changed.

Every write that changes what readers of a repository see ends in ``Changes.notify``, after the commit and before the
client's answer, whichever thread it runs in. The server hangs its cache here.

A cache that fills itself from the store needs ``revision`` as well: remember it, read, and keep what was read only if
``revision`` has not moved. Otherwise an answer read before a write could be kept after the write's invalidation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from sluice.oci.reference import Repository

Listener = Callable[[Repository], None]


class Changes:
    """The listeners of one store. Listeners run in the event loop once ``attach`` was called there, must be quick and
    must not raise."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self.revision = 0

    def attach(self) -> None:
        """Call from the event loop that listeners belong to."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def detach(self) -> None:
        """The loop is going away; listeners run in the notifying thread from here on."""
        self._loop = None

    def on_change(self, listener: Listener) -> None:
        """Call ``listener(repository)`` after each write that readers of the repository can see."""
        self._listeners.append(listener)

    def notify(self, repository: Repository) -> None:
        """Say that ``repository`` has changed, from any thread.

        A thread's work is awaited through ``call_soon_threadsafe`` too, which keeps the order: listeners have run when
        the coroutine that waits for the thread goes on.
        """
        loop = self._loop
        if loop is None or threading.get_ident() == self._thread:
            self._tell(repository)
        else:
            loop.call_soon_threadsafe(self._tell, repository)

    def _tell(self, repository: Repository) -> None:
        self.revision += 1
        for listener in self._listeners:
            listener(repository)

"""What an agent sleeps by: it wakes when time is over, when somebody rings, and when the process it watches ends.

An idle agent does little else than wake up, and on an idle machine each thing that it touches then has to be brought
back into the processor's caches: sleeping in ``poll`` cost half of what a ``threading.Event`` did, and a process that
is watched by descriptor (``pidfd_open(2)``) is not looked for.
"""

from __future__ import annotations

import contextlib
import os
import select
from types import TracebackType
from typing import Self

RINGS_MAX = 4096  # taken off the line at once


class Bell:
    """For one sleeper. ``ring`` is for anybody, signal handlers included. ``gone``: the process watched has ended."""

    def __init__(self) -> None:
        self._line, self._button = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._line, select.POLLIN)
        self._pid: int | None = None
        self._process: int | None = None
        self.gone = False

    def ring(self) -> None:
        """End the sleep, or the next one."""
        with contextlib.suppress(OSError):  # it is ringing already, or nobody sleeps here any more
            os.write(self._button, b"\0")

    def watch(self, pid: int | None) -> None:
        """End a sleep when this process ends; one at a time, and None for none."""
        if pid == self._pid and not self.gone:
            return
        self._leave()
        self.gone = False
        self._pid = pid
        if pid is None:
            return
        try:
            self._process = os.pidfd_open(pid)
        except OSError:  # it has ended already
            self.gone = True
        else:
            self._poll.register(self._process, select.POLLIN)

    def sleep(self, seconds: float) -> None:
        """Wait for ``seconds`` or for what ends that sooner."""
        for descriptor, _ in self._poll.poll(1000 * seconds):
            if descriptor == self._line:
                os.read(self._line, RINGS_MAX)
            else:
                self.gone = True
                self._leave()

    def close(self) -> None:
        """Nobody sleeps or rings any more."""
        self._leave()
        os.close(self._line)
        button, self._button = self._button, -1
        os.close(button)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self) -> None:
        if self._process is not None:
            self._poll.unregister(self._process)
            os.close(self._process)
            self._process = None

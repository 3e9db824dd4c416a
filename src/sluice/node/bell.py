"""What an agent sleeps by: it wakes when time is over, when somebody rings, when the process it watches ends, and when
something happens to its files.

An idle agent does little else than wake up, and on an idle machine each thing that it touches then has to be brought
back into the processor's caches: sleeping in ``poll`` cost half of what a ``threading.Event`` did, and what is watched
by descriptor (a process by ``pidfd_open(2)``, directories by ``inotify(7)``) is not looked for.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from sluice.node.watch import DirectoryWatch

RINGS_MAX = 4096  # taken off the line at once
SETTLE_S = 0.2
"""Between a change of files and the end of the sleep: several belong together."""
UNREST_S = 2.0
"""For how long nobody listens to directories in which something happens that is no change of the files."""


class Bell:
    """For one sleeper. ``ring`` is for anybody, signal handlers included.

    ``gone``: the process watched has ended. ``stirred``: a file has changed since the last ``follow``.
    """

    def __init__(self) -> None:
        self._line, self._button = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._line, select.POLLIN)
        self._pid: int | None = None
        self._process: int | None = None
        self._directories = DirectoryWatch()
        self._seen: int | None = None
        self._deaf = False
        self.gone = False
        self.stirred = False

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

    def follow(self, files: Iterable[Path]) -> bool:
        """End a sleep when something happens to these files, and no others.

        Returns whether a change since the last call would have: whoever sleeps is to look by itself soon where not.
        """
        self.stirred = False
        followed = self._directories.follow(files)
        if self._seen is None and self._directories.descriptor is not None:
            self._seen = self._directories.descriptor
            self._poll.register(self._seen, select.POLLIN)
        return followed

    def sleep(self, seconds: float) -> bool:
        """Wait for ``seconds`` or for what ends that sooner; returns whether something did."""
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ended_by = self._poll.poll(1000 * (min(left, UNREST_S) if self._deaf else left))
            self._listen(True)
            taken = [self._take(descriptor) for descriptor, _ in ended_by]
            if any(taken):
                return True
            if time.monotonic() >= until:
                return False

    def _take(self, descriptor: int) -> bool:
        """What one descriptor has to say; whether it ends the sleep."""
        if descriptor == self._line:
            os.read(self._line, RINGS_MAX)
        elif descriptor == self._seen:
            time.sleep(SETTLE_S)
            if not self._directories.drain():
                self._listen(False)
                return False
            self.stirred = True
        else:
            self.gone = True
            self._leave()
        return True

    def _listen(self, listens: bool) -> None:
        """Whether the next sleep hears of directories."""
        if self._seen is not None and self._deaf is listens:
            self._poll.modify(self._seen, select.POLLIN if listens else 0)
            self._deaf = not listens

    def close(self) -> None:
        """Nobody sleeps or rings any more."""
        self._leave()
        self._directories.close()
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

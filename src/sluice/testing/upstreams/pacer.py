"""When the next bytes may go, at so many bytes per second. For ``Slow`` and for ``shaped``."""

from __future__ import annotations

import threading

BURST_S = 0.05


class Pacer:
    """A schedule that any number of threads share; ``now`` is the caller's, in seconds of ``time.monotonic``.

    A thread that slept too long may catch up by ``BURST_S``, so that the rate is met and not only kept.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._next_s: float | None = None

    def reserve(self, length: int, now: float) -> float:
        """Take ``length`` bytes' place in the schedule; how long to wait before sending them, in seconds."""
        with self._lock:
            begin = now if self._next_s is None else max(self._next_s, now - BURST_S)
            self._next_s = begin + length / self.bytes_per_s
        return max(begin - now, 0.0)

    def piece(self, most: int) -> int:
        """Bytes to send at once: what a fiftieth of a second allows, at least one, at most ``most``."""
        return max(1, min(most, int(self.bytes_per_s / 50)))

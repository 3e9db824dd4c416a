"""The circuit breaker of one address. PURE: time comes as an argument.

``endpoint`` asks ``allow`` before a request and reports how it ended. After ``FAILURES_TO_OPEN`` failures in a row
nothing is let through for a while, so that a dead upstream costs nothing; then one probe at a time, less and less
often.

No connection says something about the upstream, each time. An answer of 5xx, and a connection that stands and brings no
answer, say something about what was asked for: the same thing counts once, however often it is asked for, until
something else succeeds. So a blob that an upstream cannot read is not the upstream's end, and one that fails at
everything is soon known for it. What another host does that the upstream redirects to is none of its failures.

One that opens again soon after it closed has twice the delay, too: an upstream may answer probes and nothing else.

    closed --failures--> open --delay--> half-open --probe succeeded--> closed
                          ^                  |
                          +--- probe failed--+   (with twice the delay)
"""

from __future__ import annotations

from collections.abc import Callable

from sluice.errors import UpstreamError

FAILURES_TO_OPEN = 3
DELAY_S = 1.0
DELAY_MAX_S = 30.0


def _nothing() -> None:
    return


class Breaker:
    """``now`` is any clock in seconds that does not run backwards. ``on_change`` is called when it opened or closed."""

    def __init__(self) -> None:
        self._failures = 0
        self._delay_s = DELAY_S
        self._retry_at: float | None = None
        self._closed_at: float | None = None
        self._probing = False
        self._refused: set[str] = set()  # what failed over a connection, since the last success
        self.trouble: UpstreamError | None = None  # the last one, for who is held back
        self.on_change: Callable[[], None] = _nothing

    @property
    def retry_at(self) -> float | None:
        """When the next probe may be sent; None where all is well."""
        return self._retry_at

    @property
    def is_open(self) -> bool:
        """Whether requests are held back, but for probes."""
        return self._retry_at is not None

    def allow(self, now: float) -> bool:
        """Whether to send a request. Where it says yes, exactly one of the three below must follow."""
        if self._retry_at is None:
            return True
        if not self.is_due(now):
            return False
        self._probing = True
        return True

    def is_due(self, now: float) -> bool:
        """Whether a probe may be sent now, and none is under way."""
        return self._retry_at is not None and not self._probing and now >= self._retry_at

    def succeeded(self, now: float) -> None:
        """The upstream answered."""
        self._failures = 0
        self._refused.clear()
        was_open, self._retry_at = self.is_open, None
        self._probing = False
        if was_open:
            self._closed_at = now
            self.on_change()

    def failed(self, now: float, about: str | None = None) -> None:
        """There was no connection; or there was one, and no answer but 5xx to a request ``about`` this."""
        if self._retry_at is None:
            if about in self._refused:
                return
            if about is not None:
                self._refused.add(about)
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                again = self._closed_at is not None and now - self._closed_at < DELAY_MAX_S
                self._delay_s = min(2 * self._delay_s, DELAY_MAX_S) if again else DELAY_S
                self._retry_at = now + self._delay_s
                self.on_change()
        elif self._probing:
            self._delay_s = min(2 * self._delay_s, DELAY_MAX_S)
            self._retry_at = now + self._delay_s
            self._probing = False
        # Else a straggler from before it opened: it says nothing new.

    def abandoned(self) -> None:
        """Nobody waited for the answer: the next caller may probe instead."""
        self._probing = False

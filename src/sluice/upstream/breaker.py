"""The circuit breaker of one address. PURE: time comes as an argument.

``endpoint`` asks ``allow`` before a request and reports how it ended. After ``FAILURES_TO_OPEN`` failures in a row
nothing is let through for a while, so that a dead upstream costs nothing; then one probe at a time, less and less
often.

No connection says something about the upstream, each time. An answer of 5xx, and a connection that stands and brings no
answer, say something about what was asked for: the same thing counts once, however often it is asked for, until
something else succeeds. So a blob that an upstream cannot read is not the upstream's end, and one that fails at
everything is soon known for it. What another host does that the upstream redirects to is none of its failures.

    closed --failures--> open --delay--> half-open --probe succeeded--> closed
                          ^                  |
                          +--- probe failed--+   (with twice the delay)
"""

from __future__ import annotations

from sluice.errors import UpstreamError

FAILURES_TO_OPEN = 3
DELAY_S = 1.0
DELAY_MAX_S = 30.0


class Breaker:
    """``now`` is any clock in seconds that does not run backwards."""

    def __init__(self) -> None:
        self._failures = 0
        self._delay_s = DELAY_S
        self._retry_at: float | None = None
        self._probing = False
        self._refused: set[str] = set()  # what failed over a connection, since the last success
        self.trouble: UpstreamError | None = None  # the last one, for who is held back

    @property
    def is_open(self) -> bool:
        """Whether requests are held back, but for probes."""
        return self._retry_at is not None

    def allow(self, now: float) -> bool:
        """Whether to send a request. Where it says yes, exactly one of the three below must follow."""
        if self._retry_at is None:
            return True
        if self._probing or now < self._retry_at:
            return False
        self._probing = True
        return True

    def succeeded(self, now: float) -> None:
        """The upstream answered."""
        del now
        self._failures = 0
        self._refused.clear()
        self._delay_s = DELAY_S
        self._retry_at = None
        self._probing = False

    def failed(self, now: float, about: str | None = None) -> None:
        """There was no connection; or there was one, and no answer but 5xx to a request ``about`` this."""
        if self._retry_at is None:
            if about in self._refused:
                return
            if about is not None:
                self._refused.add(about)
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._retry_at = now + self._delay_s
        elif self._probing:
            self._delay_s = min(2 * self._delay_s, DELAY_MAX_S)
            self._retry_at = now + self._delay_s
            self._probing = False
        # Else a straggler from before it opened: it says nothing new.

    def abandoned(self) -> None:
        """Nobody waited for the answer: the next caller may probe instead."""
        self._probing = False

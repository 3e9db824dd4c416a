"""How long an upstream that said 429 is left alone. PURE: time comes as an argument.

``endpoint`` asks before it sends. Asked again before its time, an upstream would count that as well, and no answer
could be another.
"""

from __future__ import annotations

import math

from sluice.errors import UpstreamRateLimited

HOLD_MAX_S = 300
"""A longer wait that was asked for is held to this: then it is asked once more."""


class Hold:
    """Of one kind of request. ``now`` is any clock in seconds that does not run backwards."""

    def __init__(self) -> None:
        self._until = -math.inf
        self._said = ""

    def note(self, error: UpstreamRateLimited, now: float) -> None:
        """The upstream said so, and when to come back."""
        if error.retry_after_s is not None and now >= self._until:
            self._until = now + min(error.retry_after_s, HOLD_MAX_S)
            self._said = error.message

    def require(self, now: float) -> None:
        """Return where it may be asked; raises UpstreamRateLimited with the rest of the time."""
        rest = self._until - now
        if rest > 0:
            raise UpstreamRateLimited(f"not asked again yet: {self._said}", retry_after_s=math.ceil(rest))

"""Whether to try again, and when. PURE: chance comes as an argument.

``endpoint`` asks after every attempt of a GET or HEAD that failed. Only what is likely to pass within the caller's
patience is tried again: a timeout has used it up already, and a rate limit says itself when to come back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from sluice.errors import UpstreamError, UpstreamFailed, UpstreamRateLimited, UpstreamUnreachable
from sluice.upstream.settings import UpstreamLimits

RETRY_AFTER_MAX_S = 3600
"""A longer wait that is asked for is taken for this."""


def retry_delay(
    error: UpstreamError, retry_after_s: int | None, attempt: int, fraction: float, limits: UpstreamLimits
) -> float | None:
    """Seconds to wait before the next attempt, None to give up.

    ``attempt`` counts from 1; ``fraction`` is random from 0 to 1 and spreads the callers of one upstream, so that they
    do not come back together. ``retry_after_s`` is what the answer asked for.
    """
    if attempt >= limits.tries:
        return None
    if isinstance(error, UpstreamRateLimited):
        # Without a time of its own, a retry would only use up more of the quota.
        within = retry_after_s is not None and retry_after_s <= limits.backoff_max_s
        return float(retry_after_s or 0) if within else None
    if not isinstance(error, UpstreamUnreachable | UpstreamFailed):
        return None
    if retry_after_s is not None:
        return float(retry_after_s) if retry_after_s <= limits.backoff_max_s else None
    ceiling = min(limits.backoff_s * 2.0 ** (attempt - 1), limits.backoff_max_s)
    return ceiling * (0.5 + 0.5 * fraction)


def parse_retry_after(value: str | None, now: datetime) -> int | None:
    """Seconds from ``Retry-After``, a number or an HTTP date (RFC 9110 section 10.2.3); None where it says nothing.

    ``now`` is aware. Never raises; at most ``RETRY_AFTER_MAX_S``.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(0, min(int(seconds + 0.999), RETRY_AFTER_MAX_S))

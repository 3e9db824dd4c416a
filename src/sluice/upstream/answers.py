"""What an upstream's answer means, as one of our errors."""

from __future__ import annotations

from datetime import UTC, datetime

from sluice.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLoop,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnauthorized,
)
from sluice.upstream.exchange import Response
from sluice.upstream.retry import parse_retry_after
from sluice.wire.problem import parse_errors


async def refusal(response: Response, error_body_bytes: int) -> UpstreamError:
    """The error for an answer that is no success; reads what it says and closes it."""
    retry_after_s = parse_retry_after(response.header("retry-after"), datetime.now(UTC))
    said = "; ".join(f"{one.code}: {one.message}" for one in parse_errors(await response.start(error_body_bytes))[:2])
    message = f"{response.target.shown} answers {response.status}" + (f" ({said})" if said else "")
    status = response.status
    if status in {401, 403}:
        return UpstreamUnauthorized(message)
    if status == 429:
        return UpstreamRateLimited(message, retry_after_s=retry_after_s)
    if status == 508:
        return UpstreamLoop(f"{message}: the upstream asks ourselves, directly or through others")
    kind = UpstreamTimeout if status in {408, 504} else UpstreamFailed if status >= 500 else UpstreamInvalid
    error = kind(message)
    error.retry_after_s = retry_after_s
    return error

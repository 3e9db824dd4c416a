"""Who we are in a chain of registries: the ``Via`` header (RFC 9110 section 7.6.3).

Every request to an upstream carries this process's identifier. A request that arrives with it has gone round in a
circle; the server refuses such a request with UpstreamLoop. ``RECEIVED_VIA`` is what a request brought with it: the
server sets it, and tasks inherit it, so that a circle through several caches is seen too.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

VIA_LENGTH_MAX = 2048
"""Characters of the header that we pass on; a chain so long is cut at its far end."""

RECEIVED_VIA: ContextVar[str] = ContextVar("received_via", default="")

_UNPRINTABLE = re.compile(r"[^ -~]")
_INSTANCE = secrets.token_hex(8)


def instance_id() -> str:
    """This process's identifier, as it stands in ``Via`` after ``sluice-``."""
    return _INSTANCE


def is_own(via: str) -> bool:
    """Whether a request with this ``Via`` has been sent by ourselves."""
    return f"sluice-{_INSTANCE}" in via


def via() -> str:
    """The header's value for a request that is sent now."""
    own = f"1.1 sluice-{_INSTANCE}"
    received = _UNPRINTABLE.sub("?", RECEIVED_VIA.get()[-VIA_LENGTH_MAX:])
    return f"{received}, {own}" if received else own

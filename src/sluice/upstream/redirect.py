"""Where an answer may send us, and what goes along. PURE: addresses come in resolved.

``transport`` follows redirects by these rules, ``auth`` holds a token endpoint to them. An upstream is trusted with its
own credentials and with nothing else: it must not get at what only this machine can reach, nor give our credentials
away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from sluice.errors import UpstreamInvalid
from sluice.wire.address import without_user

URL_LENGTH_MAX = 16 * 1024
"""Characters of a target; signed URLs of blob storage have some thousands."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_PORTS = {"http": 80, "https": 443}
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: a provider's own, neither public nor private to Python
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


@dataclass(frozen=True, slots=True)
class Target:
    """An absolute URL, taken apart as far as it matters here. IPv6 hosts are without brackets."""

    url: str
    scheme: str
    host: str
    port: int

    @property
    def place(self) -> tuple[str, int]:
        """Host and port: who gets the request."""
        return self.host, self.port

    @property
    def shown(self) -> str:
        """For messages: without the query, which may hold a signature."""
        return _shown(self.url)


def parse_target(url: str) -> Target:
    """Take an absolute URL apart; raises UpstreamInvalid."""
    shown = _shown(url)
    if len(url) > URL_LENGTH_MAX or any(not "!" <= character <= "~" for character in url) or "\\" in url:
        raise UpstreamInvalid(
            f"the upstream sends us to {shown}, which is too long or holds characters that no URL has"
        )
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError:
        raise UpstreamInvalid(f"the upstream sends us to {shown}, which is no URL") from None
    if parts.scheme not in _PORTS or not host or "@" in parts.netloc or "%" in host or port == 0:
        raise UpstreamInvalid(f"the upstream sends us to {shown}; only http and https URLs without a user are followed")
    return Target(parts._replace(fragment="").geturl(), parts.scheme, host, port or _PORTS[parts.scheme])


def _shown(url: str) -> str:
    return ascii(without_user(url.partition("?")[0])[:200]).replace("\\u2026", "…")


def next_target(current: Target, location: str | None) -> Target:
    """Where a redirect from ``current`` leads; raises UpstreamInvalid, also where it leads from https to http."""
    if not location or len(location) > URL_LENGTH_MAX:
        raise UpstreamInvalid(f"the upstream redirects {current.shown} without saying where to")
    try:
        joined = urljoin(current.url, location.strip())
    except ValueError:
        raise UpstreamInvalid(f"the upstream redirects {current.shown} to what is no URL") from None
    target = parse_target(joined)
    if current.scheme == "https" and target.scheme == "http":
        raise UpstreamInvalid(f"the upstream redirects {current.shown} to plain HTTP, {target.shown}: not followed")
    return target


def is_internal(address: str) -> bool:
    """Whether an IP address is one that the internet cannot reach: private, loopback, link-local and the like."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_internal(str(inner))
    elif found in _SHARED:
        return True
    return not found.is_global or found.is_multicast or found.is_unspecified


def any_internal(addresses: Iterable[str]) -> bool:
    """Whether one of a host's addresses is internal: we do not choose which of them is connected to."""
    return any(is_internal(address) for address in addresses)

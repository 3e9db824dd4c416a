"""Whether an upstream is this very server: told from its address at the start, and from ``Via`` for each request.

The address is enough for a mistake in the configuration. What goes round through other machines is seen by ``Via``
(``upstream.instance``).
"""

from __future__ import annotations

import ipaddress
import socket

from sluice.config import RegistryConfig, split_address
from sluice.errors import ConfigInvalid
from sluice.server.modes import upstream_keys
from sluice.wire.address import UpstreamAddress

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - a comparison, not a bind


def refuse_ourselves(config: RegistryConfig) -> None:
    """Raise ConfigInvalid where an upstream or a mirror is one of our listeners. Blocks for as long as a name takes to
    resolve, which is asked only where the port is ours."""
    if config.mode == "local":
        return
    listeners = [(key, *split_address(address)) for key, address in config.addresses.items()]
    for key, address in upstream_keys(config):
        for name, host, port in listeners:
            if address.port == port and _is_ours(address, host):
                raise ConfigInvalid(
                    f"{key} is {str(address)!r}, which is this server's own {name}: name the registry to ask"
                )


def _is_ours(address: UpstreamAddress, host: str) -> bool:
    if address.host == host:
        return True
    theirs = _addresses(address.host)
    if host in _WILDCARDS:
        return any(_is_local(one) for one in theirs)
    return not theirs.isdisjoint(_addresses(host))


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()  # what does not resolve is nobody, now


def _is_local(address: str) -> bool:
    """Whether this machine has the address: only such can be bound."""
    if ipaddress.ip_address(address).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True

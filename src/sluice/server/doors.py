"""The listeners for clients with certificates: whom each of them lets in and what those may do.

Since nobody behind the TLS library learns whose certificate it was, a door's CA is all that says who came through it.
Each has one of its own, ``certificates`` sees to that, and one fixed role.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from sluice.server.access import Principal
from sluice.server.exchange import Receive, Scope, Send
from sluice.server.listen import ASGIApplication
from sluice.server.users import Role

ROLES: Mapping[str, Role] = {"nodes": Role.READ, "peers": Role.READ, "operators": Role.ADMIN}
HEALTH = frozenset({b"/livez", b"/readyz"})


def certified(door: str) -> Principal:
    """Whoever came through the door of that section."""
    return Principal.certificate(ROLES[door], f"certificate:{door}")


class WithHealth:
    """An application that answers ``/livez`` and ``/readyz`` too, on every listener of the registry.

    So a balancer's check travels the way of the traffic that it speaks for: same port, same certificates. It is neither
    logged nor counted as a request: every node's balancer asks several times a second.
    """

    __slots__ = ("_application", "_operations")

    def __init__(self, application: ASGIApplication, operations: ASGIApplication) -> None:
        self._application = application
        self._operations = operations

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request. Not a coroutine of its own: this is on the way of every hot manifest."""
        healthy = scope["type"] == "http" and scope["raw_path"] in HEALTH
        return (self._operations if healthy else self._application)(scope, receive, send)

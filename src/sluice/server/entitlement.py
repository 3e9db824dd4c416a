"""Whether the upstream would let this caller have what is asked for: ``cache.authorize: upstream``.

``app`` asks once who calls and may pull here has been settled, and before any handler. The upstream is shown the Basic
credentials that the caller sent to us; tokens of ours say nothing to it, so they count as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from sluice.cache.tenants import Caller, Question, Tenants
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.upstream.settings import Anonymous, CredentialSettings, StaticPassword
from sluice.wire.credentials import BasicCredentials, parse_authorization
from sluice.wire.route import Kind, Route

if TYPE_CHECKING:
    from sluice.upstream.registry import RemoteRegistry


class Entitlement:
    """Over one wiring's upstreams: ``default``, and the others by the first part of their repositories' names here."""

    def __init__(self, default: RemoteRegistry, places: Mapping[str, RemoteRegistry], tenants: Tenants) -> None:
        self._default = default
        self._places = places
        self._tenants = tenants

    async def require(self, route: Route, authorization: bytes | None) -> None:
        """Return where the caller may have what the route names; raises what ``Tenants.require`` raises.

        What an upstream gives to everybody, because we have no credentials for it, everybody may have.
        """
        assert route.repository is not None
        place, slash, inner = route.repository.partition("/")
        remote = self._places.get(place) if slash else None
        own = Repository(inner) if remote is not None else route.repository
        upstream = remote or self._default
        if isinstance(upstream.settings.credentials, Anonymous):
            return
        found = parse_authorization(authorization)
        caller = Caller(found.name, found.password) if isinstance(found, BasicCredentials) else None

        async def ask_with(credentials: CredentialSettings | None) -> None:
            if route.kind is Kind.BLOB:
                assert isinstance(route.reference, Digest)
                await upstream.admits_blob(own, route.reference, credentials)
            else:
                await upstream.admits(own, route.reference if route.kind is Kind.MANIFEST else None, credentials)

        async def ask(one: Caller | None) -> None:
            await ask_with(Anonymous() if one is None else StaticPassword(one.name, one.password))

        question = Question((route.kind, str(route.reference)), ask, partial(ask_with, None))
        await self._tenants.require(route.repository, caller, question)

    async def close(self) -> None:
        """End what is being asked; idempotent."""
        await self._tenants.close()

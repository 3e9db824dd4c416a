"""The token endpoint: GET and POST ``/token`` (the Docker token protocol that OCI clients speak)."""

from __future__ import annotations

from sluice.server.exchange import Exchange
from sluice.server.registry import Registry
from sluice.server.tokens import TokenRequest

FORM_BYTES_MAX = 16 * 1024
HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


async def token(registry: Registry, x: Exchange) -> None:
    """Issue a token for what was asked for and is allowed; raises Unauthorized or RequestInvalid."""
    authorization = x.header(b"authorization")
    if x.method == "POST":
        form = await x.read_body(FORM_BYTES_MAX, "the token form")
        grant = TokenRequest.from_form(form, authorization)
    else:
        grant = TokenRequest.from_query(x.scope["query_string"], authorization)
    await x.respond(200, HEADERS, await registry.access.token(grant, x.origin))

"""Docker's ``config.json``: which credentials, or which program, it names for a registry. No I/O.

``credentials`` reads the file and hands its text over. Sources: the Docker CLI's "Credential store" and "Credential
helpers", and containers-auth.json(5), whose keys may carry a repository path.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field

from sluice.wire.address import UpstreamAddress

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
DOCKER_HUB_KEY = "https://index.docker.io/v1/"

IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 - the protocol's mark, not a secret
"""The name under which credential helpers hand out an identity token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to an upstream: a name with its password, or an identity token (an OAuth 2 refresh token)."""

    name: str
    secret: str = field(repr=False)
    is_identity_token: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What the file says about one registry. ``helper`` is asked with ``server``; ``credentials`` stand in the file."""

    server: str
    helper: str | None
    credentials: Credentials | None


def find_entry(text: bytes, address: UpstreamAddress) -> Entry:
    """Look an address up; raises ValueError, whose text names the member that cannot be read.

    As in the Docker CLI a helper of the registry's own goes before the store for all, and both before the file.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - the caller collects ValueError
    names = _names(address)
    auths = _member(document, "auths")
    key = next((name for name in names if name in auths), None)
    helpers = _member(document, "credHelpers")
    server = next((name for name in names if name in helpers), None)
    helper = helpers[server] if server is not None else document.get("credsStore")
    if helper is not None and (not isinstance(helper, str) or not helper or "/" in helper):
        raise ValueError(f"names a credential helper that is none: {ascii(helper)[:80]}")
    fallback = DOCKER_HUB_KEY if address.host in DOCKER_HUB else address.authority
    return Entry(server or key or fallback, helper, None if key is None else _credentials(auths[key], key))


def _member(document: dict[str, object], name: str) -> dict[str, object]:
    found = document.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"has {name} that is no object")  # noqa: TRY004 - the caller collects ValueError
    return found


def _names(address: UpstreamAddress) -> list[str]:
    """The keys under which it may stand, the most special first."""
    parts = address.prefix.split("/") if address.prefix else []
    paths = ["/".join([address.authority, *parts[:count]]) for count in range(len(parts), -1, -1)]
    hosts = [DOCKER_HUB_KEY, *sorted(DOCKER_HUB)] if address.host in DOCKER_HUB else []
    forms = ("{}", "https://{}", "http://{}", "https://{}/v2/", "https://{}/v1/", "https://{}/")
    return [form.format(path) for path in paths for form in forms] + hosts


def _credentials(entry: object, key: str) -> Credentials | None:
    if not isinstance(entry, dict):
        raise ValueError(f"has an entry for {key} that is no object")  # noqa: TRY004 - the caller collects ValueError
    values = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken")}
    if not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f"has an entry for {key} whose members are no strings")
    name, password = values["username"], values["password"]
    if values["auth"]:
        try:
            decoded = base64.b64decode(values["auth"], validate=True).decode("utf-8").rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"has an entry for {key} whose auth is not Base64 of a name and password") from None
        name, colon, password = decoded.partition(":")
        if not colon:
            raise ValueError(f"has an entry for {key} whose auth has no colon between name and password")
    if values["identitytoken"]:
        return Credentials(name, values["identitytoken"], is_identity_token=True)
    return Credentials(name, password) if name or password else None

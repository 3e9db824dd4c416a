"""Callers of a guarded registry: users that are made, and requests with their credentials."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from sluice.server.users import Role, Users
from sluice.testing.client import OCI_MANIFEST, Answer, RegistryClient
from sluice.testing.server import SluiceServer

COST = 4  # bcrypt's lowest: these users guard nothing
BLOB = b"guarded"
USERS: list[tuple[str, Role, Sequence[str]]] = [
    ("reader", Role.READ, ()),
    ("writer", Role.WRITE, ()),
    ("root", Role.ADMIN, ()),
    ("team", Role.WRITE, ("team",)),
    ("app", Role.READ, ("team/app", "shared")),
]


def basic(name: str, password: str = "secret") -> str:
    """The value of ``Authorization``."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def with_users(data: Path, users: Sequence[tuple[str, Role, Sequence[str]]]) -> Path:
    """A data directory with users, all of whose passwords are ``secret``."""
    data.mkdir(mode=0o700)
    known = Users(data, cost=COST)
    for name, role, prefixes in users:
        known.add(name, "secret", role, prefixes)
    return data


def ask(server: SluiceServer, method: str, path: str, authorization: str | None = None) -> Answer:
    """One request on a connection of its own."""
    client = RegistryClient(server, authorization)
    answer = client.request(method, f"/v2/{path}", None, {"Content-Type": OCI_MANIFEST} if method == "PUT" else None)
    client.close()
    return answer

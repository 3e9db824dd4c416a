"""The fixture of the access tests: a real directory of users behind ``Access``, and a clock that the test holds."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sluice.oci.reference import Repository
from sluice.server.access import Access, AccessSettings, Principal
from sluice.server.passwords import PasswordCheck
from sluice.server.tokens import TokenRequest, Tokens
from sluice.server.users import Role, Users

COST = 4
ORIGIN = "https://127.0.0.1:5001"
APP = Repository("team/app")
CLOSED = AccessSettings(False, False, "bearer", "sluice", None, 300)
OPEN = replace(CLOSED, open=True)
PUBLIC = replace(CLOSED, anonymous_pull=True)
CHALLENGE = f'Bearer realm="{ORIGIN}/token",service="sluice"'


T = TypeVar("T")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Gate:
    """Access on a real directory of users, with a clock that the test holds."""

    users: Users
    access: Access
    clock: Clock

    def who(self, header: bytes | None) -> Principal:
        return run(self.access.identify(header, ORIGIN))

    def token(self, query: str = "", header: bytes | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            run(self.access.token(TokenRequest.from_query(query.encode(), header), ORIGIN))
        )
        return answer

    def bearer(self, scopes: str, header: bytes | None = None) -> bytes:
        token: str = self.token(f"scope={scopes}", header)["token"]
        return b"Bearer " + token.encode()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def gate_at(data: Path, settings: AccessSettings = CLOSED) -> Gate:
    clock = Clock()
    users = Users(data, cost=COST, clock=clock)
    tokens = Tokens(data, users, settings.service, clock=clock)
    return Gate(users, Access(users, PasswordCheck(users, clock=clock), tokens, settings, clock), clock)


def basic(name: str, password: str = "secret") -> bytes:
    """The header that a client sends for a name and password."""
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


def user_like(role: Role, *prefixes: str) -> Principal:
    return Principal("alice", Principal.certificate(role).actions, tuple(f"{prefix}/" for prefix in prefixes))

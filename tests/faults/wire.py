"""One connection without retries, for clients that must know which of their requests was answered."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Self

from sluice.testing.client import Answer, RegistryClient
from sluice.testing.server import SluiceServer

BROKEN = (OSError, http.client.HTTPException)
"""What a request raises where no whole answer came."""


class Wire:
    """Asks over one connection; raises one of ``BROKEN`` where it breaks."""

    def __init__(self, server: SluiceServer, timeout_s: float = 30.0) -> None:
        self._connection = RegistryClient(server, timeout_s=timeout_s).connect()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request and its whole answer."""
        response = self.begin(method, path, body, headers)
        data = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, data)

    def begin(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """One request and the head of its answer."""
        self._connection.request(method, path, body, dict(headers or {}))
        return self._connection.getresponse()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

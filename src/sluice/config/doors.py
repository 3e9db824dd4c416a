"""The sections about listeners for clients that are known by a certificate: one for each of the cluster's CAs.

The server library does not tell the application whose certificate it was, so that who somebody is shows in nothing but
the address that they came to. What each door allows is fixed (``server.doors``).
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sluice.config.section import Section, conflict
from sluice.config.values import Address, FilePath


class DoorConfig(Section):
    """A listener that demands certificates of ``ca``; none without ``listen``."""

    listen: Address | None = Field(
        default=None, description="address of this listener, which is bound exactly as it stands here; needs `ca`"
    )
    ca: FilePath | None = Field(
        default=None,
        description="PEM file with the CA of the clients' certificates, both while one replaces the other;"
        " read again when it changes",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.listen is not None and self.ca is None:
            raise conflict("listen", "needs ca beside it, the PEM file with the CA of the clients' certificates")
        if self.listen is None and self.ca is not None:
            raise conflict("ca", "has no effect without listen: set both or neither")
        return self


class NodesConfig(DoorConfig):
    """The listener for the cluster's nodes, known by certificates. They pull everything and are never asked for a
    password; `/livez` and `/readyz` are answered there too."""


class PeersConfig(DoorConfig):
    """The listener for the other replicas, known by certificates. They read everything."""


class OperatorsConfig(DoorConfig):
    """The listener for operators, known by certificates. They may do everything."""

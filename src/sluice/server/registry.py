"""What the handlers work on: the wiring of one mode, with its limits.

Handlers know these contracts and nothing behind them; another mode is another value of this class.
"""

from __future__ import annotations

from dataclasses import dataclass

from sluice.server.access import Access
from sluice.server.hot import HotManifests
from sluice.store.local import LocalStore
from sluice.telemetry import AccessLog, Metrics


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request. Bytes and seconds by suffix."""

    manifest_bytes: int
    body_idle_s: float
    response_idle_s: float
    streams_bytes: int


@dataclass(frozen=True, slots=True)
class Registry:
    """A wired registry."""

    store: LocalStore
    access: Access
    hot: HotManifests
    metrics: Metrics
    access_log: AccessLog
    limits: Limits

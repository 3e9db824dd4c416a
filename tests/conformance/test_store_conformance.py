"""Both stores keep every claim of the content contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sluice.oci.content import Source, Uploads
from sluice.store.local import LocalStore
from sluice.store.memory import MemoryStore
from sluice.store.settings import StoreSettings
from sluice.testing.conformance import SOURCE_SINK_CLAIMS, SourceSink, source_sink_conformance
from sluice.testing.conformance_uploads import UPLOADS_CLAIMS, uploads_conformance

Store = LocalStore | MemoryStore
KINDS = ("local", "memory")
SETTINGS = StoreSettings(reserve_bytes=0)


def on_store(kind: str, data: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    """Run ``work`` on a fresh store of ``kind``, started and closed around it."""

    async def run() -> None:
        store: Store = LocalStore.open(data, SETTINGS) if kind == "local" else MemoryStore(SETTINGS)
        await store.start()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", SOURCE_SINK_CLAIMS, ids=lambda claim: claim.__name__)
def test_source_and_sink(kind: str, claim: Callable[[SourceSink], Awaitable[None]], tmp_path: Path) -> None:
    """The claim in the function's own docstring holds."""
    on_store(kind, tmp_path, claim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", UPLOADS_CLAIMS, ids=lambda claim: claim.__name__)
def test_uploads(kind: str, claim: Callable[[Uploads, Source], Awaitable[None]], tmp_path: Path) -> None:
    """The claim in the function's own docstring holds."""
    on_store(kind, tmp_path, lambda store: claim(store.uploads, store))


@pytest.mark.parametrize("kind", KINDS)
def test_a_used_store_still_conforms(kind: str, tmp_path: Path) -> None:
    """All claims hold on one store one after the other, twice."""

    async def twice(store: Store) -> None:
        for _ in range(2):
            await source_sink_conformance(store)
            await uploads_conformance(store.uploads, store)

    on_store(kind, tmp_path, twice)

"""A cache before a registry is a ``Source`` like any other: what is pushed behind it is read through it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from cache.scripted import POLICY, caching
from sluice.cache.pullthrough import PullThrough
from sluice.store.memory import MemoryStore
from sluice.store.settings import StoreSettings
from sluice.testing.conformance import SOURCE_SINK_CLAIMS, SourceSink

AT_ONCE = replace(POLICY, tag_fresh_s=0, negative_s=0, revalidate="first", keep_gone=False)


class Through:
    """Reads through the cache, and writes to what is behind it."""

    def __init__(self, pull: PullThrough, behind: MemoryStore) -> None:
        for name in ("resolve", "manifest", "open_blob", "tags", "referrers"):
            setattr(self, name, getattr(pull, name))
        for name in ("begin_blob", "put_manifest", "delete"):
            setattr(self, name, getattr(behind, name))


@pytest.mark.parametrize("claim", SOURCE_SINK_CLAIMS, ids=lambda claim: claim.__name__)
async def test_source(claim: Callable[[SourceSink], Awaitable[None]], tmp_path: Path) -> None:
    """The claim in the function's own docstring holds."""
    async with caching(tmp_path, AT_ONCE) as cache:
        behind = MemoryStore(StoreSettings(reserve_bytes=0))
        pull = PullThrough(cache.store, behind, cache.fills, policy=AT_ONCE, clock=cache.clock)
        await claim(cast("SourceSink", Through(pull, behind)))
        await pull.close()

"""What is known is served at once, though the upstream is silent: only the first to ask waits, and not for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.scripted import APP, LATEST, POLICY, Cache, caching, until
from sluice.cache.answers import Fetched, Kind
from sluice.cache.policy import CachePolicy, patience_s
from sluice.testing.content import image

CONFIG, LAYER = b"{}", b"layer"
IMAGE = image(CONFIG, LAYER)
NEWER = image(CONFIG, LAYER, annotations={"newer": "yes"})
KNOWN_S, TROUBLED_S = 0.6, 0.02
WAITING = replace(POLICY, revalidate="first", head_deadline_s=20.0, known_wait_s=KNOWN_S, troubled_wait_s=TROUBLED_S)
SOON_S = 0.3  # far above TROUBLED_S, and below KNOWN_S

Ask = Callable[[Cache], Awaitable[Fetched[Any]]]
QUESTIONS: dict[str, Ask] = {
    "tag": lambda cache: cache.pull.fetch_descriptor(APP, LATEST),
    "list": lambda cache: cache.pull.fetch_tags(APP, 10, None),
    "referrers": lambda cache: cache.pull.fetch_referrers(APP, IMAGE.digest),
}


async def told(cache: Cache, ask: Ask) -> tuple[Kind, str | None, bool]:
    """Where the answer came from, why, and whether that was soon."""
    began = time.monotonic()
    provenance = (await ask(cache)).provenance
    return provenance.kind, provenance.reason, time.monotonic() - began < SOON_S


@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize("policy", [WAITING, replace(WAITING, revalidate="background")], ids=["first", "too old"])
async def test_only_the_first_waits(tmp_path: Path, what: str, policy: CachePolicy) -> None:
    """With a silent upstream the first who asks for what is known gets it after ``known_wait_s``, and everybody later
    at once, also who becomes the probe; one question is under way at a time, and its answer is taken when it comes."""
    ask = QUESTIONS[what]
    async with caching(tmp_path, policy) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        assert Kind.UPSTREAM is (await ask(cache)).provenance.kind
        cache.clock.now += policy.tag_stale_max_s
        cache.upstream.gate = asyncio.Event()
        cache.upstream.asked.clear()
        assert (Kind.STALE, "timeout", False) == await told(cache, ask)
        for _ in range(3):
            for _ in range(3):
                assert (Kind.STALE, "timeout", True) == await told(cache, ask)
            cache.clock.now += policy.negative_s
        assert 1 == cache.upstream.asked.total()
        cache.upstream.add_image(NEWER)
        cache.upstream.gate.set()
        await until(lambda: len(cache.pull._flights) == 0)
        assert (Kind.HIT, None, True) == await told(cache, ask)


@pytest.mark.parametrize("what", QUESTIONS)
async def test_a_healthy_upstream_is_waited_for(tmp_path: Path, what: str) -> None:
    """What is not fresh is asked about first, and the answer is waited for although it takes a while."""
    ask = QUESTIONS[what]
    async with caching(tmp_path, replace(WAITING, known_wait_s=20.0)) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        await ask(cache)
        cache.clock.now += POLICY.tag_fresh_s
        cache.upstream.gate = asyncio.Event()
        asking = asyncio.create_task(told(cache, ask))
        await asyncio.sleep(SOON_S)
        cache.upstream.gate.set()
        assert (Kind.UPSTREAM, None, False) == await asking


@pytest.mark.parametrize(
    ("known", "trouble", "expected"),
    [(False, None, 20.0), (False, "timeout", 20.0), (True, None, KNOWN_S), (True, "timeout", TROUBLED_S)],
)
def test_patience(known: bool, trouble: str | None, expected: float) -> None:
    """Who has nothing else waits for the head's deadline, and nobody for longer."""
    assert expected == patience_s(known, trouble, WAITING)
    assert min(expected, 0.01) == patience_s(known, trouble, replace(WAITING, head_deadline_s=0.01))

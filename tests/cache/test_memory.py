"""What a cache keeps in memory, and whom it asks: bounded, shared, and the upstream before its mirrors."""

from __future__ import annotations

import asyncio

import pytest

from cache.scripted import APP, LATEST, Clock, Upstream, until
from sluice.cache import flights as flights_module
from sluice.cache.flights import Flights, again
from sluice.cache.recent import Recent
from sluice.cache.sources import Mirrored
from sluice.errors import ManifestUnknown, Unavailable, UpstreamFailed, UpstreamRateLimited, UpstreamTimeout
from sluice.testing.content import image


def test_memory_is_bounded_by_weight_and_time() -> None:
    """The least recently used leave first, as many as it takes; what is too old is not given, but for who asks for
    it."""
    clock = Clock()
    recent: Recent[str, int] = Recent(10, 5.0, clock, weigh=lambda value: value)
    for key, value in (("a", 4), ("b", 4)):
        recent.put(key, value)
    assert recent.get("a") == 4
    recent.put("c", 6)
    assert (4, None, 6, 2) == (recent.get("a"), recent.get("b"), recent.get("c"), len(recent))
    recent.put("c", 1)
    recent.put("d", 5)
    assert len(recent) == 3
    recent.put("huge", 11)
    assert len(recent) == 0
    recent.put("e", 1)
    clock.now += 5.0
    assert (None, 1, clock.now - 5.0) == (recent.get("e"), recent.get_expired("e"), recent.since("e"))
    recent.forget("e")
    recent.forget("e")
    assert (None, None) == (recent.get_expired("e"), recent.since("e"))
    recent.put("f", 1)
    clock.now -= 1.0
    assert recent.get("f") is None


async def test_one_question_for_all_who_ask() -> None:
    """Whoever asks at the same time shares the answer or the error, each with an instance of its own; afterwards the
    question is asked anew."""
    flights, gate, asked = Flights(), asyncio.Event(), []

    async def fail() -> int:
        asked.append(1)
        await gate.wait()
        raise UpstreamRateLimited("429", retry_after_s=7)

    asking = [asyncio.create_task(flights.ask("key", fail, 5.0)) for _ in range(5)]
    await until(lambda: asked)
    gate.set()
    errors = await asyncio.gather(*asking, return_exceptions=True)
    assert (1, 5) == (len(asked), len(set(map(id, errors))))
    for error in errors:
        assert isinstance(error, UpstreamRateLimited)
        assert ("429", 7) == (error.message, error.retry_after_s)

    async def answer() -> int:
        return 5

    assert await flights.ask("key", answer, 5.0) == 5
    assert len(flights) == 0


async def test_questions_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ``FLIGHTS_MAX`` at once are refused; who waits longer than the deadline is told that it was the
    upstream; after ``close`` nobody waits."""
    monkeypatch.setattr(flights_module, "FLIGHTS_MAX", 2)
    flights = Flights()

    async def wait() -> int:
        await asyncio.Event().wait()
        return 0

    for key in ("a", "b"):
        with pytest.raises(UpstreamTimeout):
            await flights.ask(key, wait, 0.01)
    with pytest.raises(Unavailable, match="2 questions"):
        await flights.ask("c", wait, 0.01)
    waiting = asyncio.create_task(flights.ask("a", wait, 5.0))
    await asyncio.sleep(0)
    await flights.close()
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    with pytest.raises(Unavailable, match="stopping"):
        await flights.ask("d", wait, 0.01)


async def test_mirrors_are_believed_in_what_they_have() -> None:
    """A mirror answers for an upstream that cannot be asked; that a mirror has nothing is not believed; what the
    upstream does not have, no mirror is asked for."""
    upstream, lacking, having = Upstream(), Upstream(), Upstream()
    manifest = having.add_image(image(b"{}"))
    source = Mirrored(upstream, [lacking, having])
    upstream.error = UpstreamFailed("down")
    assert (await source.resolve(APP, LATEST)).digest == manifest.digest
    assert await source.manifest(APP, manifest.digest) == manifest
    assert list(await source.tags(APP, 10, None)) == [LATEST]
    having.error = UpstreamTimeout("silent")
    with pytest.raises(UpstreamFailed):
        await source.resolve(APP, LATEST)
    upstream.error = having.error = None
    with pytest.raises(ManifestUnknown):
        await source.resolve(APP, LATEST)
    assert having.asked["resolve"] == 2


def test_an_error_for_one_more_caller_is_its_own() -> None:
    """The copy has the message and detail, and no traceback of somebody else's."""
    error = UpstreamFailed("broken", detail={"at": 5})
    try:
        raise error
    except UpstreamFailed:
        copied = again(error)
    assert (UpstreamFailed, "broken", {"at": 5}, None) == (
        *(type(copied), copied.message),
        *(getattr(copied, "detail", None), copied.__traceback__),
    )

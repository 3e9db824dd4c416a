"""Whoever leaves leaves nothing behind: no transfer, no slot, no task."""

from __future__ import annotations

import asyncio

import pytest

from sluice.errors import SluiceError, UpstreamError, UpstreamFailed
from sluice.upstream.settings import StaticPassword, UpstreamLimits
from upstream.scripted import (
    APP,
    BLOB,
    BLOB_DIGEST,
    MANIFEST,
    MANIFEST_DIGEST,
    Answer,
    Asked,
    Scripted,
    always,
    content,
    plain,
    registry_at,
)

ONE_AT_A_TIME = UpstreamLimits(connections=1, head_s=2.0)
STALLED = Answer(body=BLOB[:1000], length=len(BLOB), stall=True)


async def abandon(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_read_that_is_cancelled_ends_the_transfer() -> None:
    """The server sees the connection go, and the only slot is free again."""

    async def story() -> None:
        async with Scripted(always(STALLED)) as server:
            registry = registry_at(server, limits=ONE_AT_A_TIME)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            reading = asyncio.create_task(blob.read(0, len(BLOB)))
            await asyncio.sleep(0.05)
            await abandon(reading)
            await asyncio.wait_for(server.gone.wait(), 10)
            server.script = plain
            assert BLOB == await content(registry)
            blob.close()
            await registry.close()

    asyncio.run(story())


def test_a_reader_that_goes_on_after_being_cancelled_misses_nothing() -> None:
    """What had come is kept, and the rest is asked for from there."""

    async def story() -> None:
        async with Scripted(always(STALLED)) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            reading = asyncio.create_task(blob.read(0, len(BLOB)))
            await asyncio.sleep(0.05)
            await abandon(reading)
            server.script = plain
            assert BLOB == await blob.read(0, len(BLOB))
            assert ["bytes=1000-"] == [asked.headers["range"] for asked in server.asked[1:]]
            blob.close()
            await registry.close()

    asyncio.run(story())


def test_a_request_that_is_cancelled_before_its_head_frees_its_slot() -> None:
    """The next one is served at once."""

    async def story() -> None:
        async with Scripted(always(Answer(0))) as server:
            registry = registry_at(server, limits=ONE_AT_A_TIME)
            waiting = asyncio.create_task(content(registry))
            while not server.asked:
                await asyncio.sleep(0.01)
            await abandon(waiting)
            server.script = plain
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_an_error_frees_its_slot() -> None:
    """Every way in which a request can end does."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(server, limits=ONE_AT_A_TIME)
            short = Answer(body=BLOB[:9], length=len(BLOB))
            for answer in (Answer(404), Answer(403), Answer(416), Answer(307), short, Answer(206), Answer(429)):
                server.script = always(answer)
                with pytest.raises(SluiceError):
                    await content(registry)
            server.script = plain
            assert BLOB == await content(registry)
            await registry.close()

    asyncio.run(story())


def test_closing_the_registry_ends_what_is_open() -> None:
    """A transfer raises an upstream's error, a token that is being fetched is given up, and no task is left."""

    async def story() -> None:
        async with Scripted(plain) as server:
            challenge = Answer(401, {"WWW-Authenticate": f'Bearer realm="{server.url()}/token"'})

            def script(asked: Asked) -> Answer:
                if asked.path == "/token":
                    return Answer(0)
                return challenge if "/manifests/" in asked.path else STALLED

            server.script = script
            registry = registry_at(server, credentials=StaticPassword("n", "p"))
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            asking = asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST))
            while server.count("GET", "/token") == 0:
                await asyncio.sleep(0.01)
            reading = asyncio.create_task(blob.read(0, len(BLOB)))
            await asyncio.sleep(0.05)
            await registry.close()
            with pytest.raises(UpstreamFailed):
                await reading
            with pytest.raises(UpstreamError):
                await blob.read(0, len(BLOB))
            with pytest.raises((UpstreamError, asyncio.CancelledError)):
                await asking
            blob.close()
            await registry.close()
            names = {repr(task.get_coro()) for task in asyncio.all_tasks()}
            assert not [name for name in names if "sluice" in name or "_fetch" in name]

    asyncio.run(story())

"""An upstream that is taken for dead is asked again although nobody wants anything of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from sluice.errors import UpstreamError
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.testing.upstreams import (
    Failing,
    Fault,
    Redirect,
    Stall,
    Unauthorized,
    UpstreamContent,
    UpstreamServer,
    anything,
)
from sluice.testing.upstreams.seen import Kind
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import CredentialSettings, StaticPassword, UpstreamLimits
from upstream.scripted import NOBODY, registry_at

APP = Repository("team/app")
BRISK = UpstreamLimits(connect_s=0.2, head_s=0.4, idle_s=0.4, backoff_s=0.001)
PATIENCE_S = 10.0
USERS = {"robot": "secret"}


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds, without asking the upstream anything."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S
        await asyncio.sleep(0.02)


async def broken(server: UpstreamServer, credentials: CredentialSettings = NOBODY) -> RemoteRegistry:
    """A registry that takes its upstream, which does not run, for dead."""
    registry = registry_at(server.address, limits=BRISK, credentials=credentials)
    with pytest.raises(UpstreamError):
        await registry.resolve(APP, Tag("v1"))
    assert registry.is_broken
    return registry


def pinged(server: UpstreamServer, count: int) -> bool:
    """Whether it was asked so often whether it is there."""
    return [Kind.PING] * count == [one.kind for one in server.requests if one.kind is Kind.PING]


def probers() -> int:
    """The tasks that ask."""
    return sum("Prober" in repr(task.get_coro()) for task in asyncio.all_tasks())


@pytest.mark.parametrize(
    ("faults", "credentials"),
    [
        ([], NOBODY),
        ([Unauthorized(users=USERS)], NOBODY),
        ([Unauthorized(users=USERS)], StaticPassword("robot", "wrong")),
        ([Unauthorized(users=USERS)], StaticPassword("robot", "secret")),
        ([Unauthorized(users=USERS, methods=("POST",))], StaticPassword("robot", "secret")),
        ([Failing(404)], NOBODY),
        ([Redirect("http://nowhere.invalid", when=anything)], NOBODY),
    ],
    ids=["answers", "401", "wrong password", "password", "password by POST", "404", "redirects"],
)
def test_it_is_known_that_it_is_back(faults: list[Fault], credentials: CredentialSettings) -> None:
    """Whatever it answers to ``/v2/``, but 5xx, it is there; nothing else is asked for."""

    async def story() -> None:
        server = UpstreamServer(UpstreamContent(), faults=faults)
        registry = await broken(server, credentials)
        with server:
            await until(lambda: not registry.is_broken)
            assert {Kind.PING} == {one.kind for one in server.requests} - {Kind.TOKEN}
            await until(lambda: probers() == 0)
        await registry.close()

    asyncio.run(story())


def test_it_is_asked_less_and_less_often() -> None:
    """While it goes on failing: after 1 s, and then after 2 more."""

    async def story() -> None:
        with UpstreamServer(UpstreamContent(), faults=[Failing(503)]) as server:
            registry = registry_at(server.address, limits=BRISK)
            for number in range(3):
                with pytest.raises(UpstreamError):
                    await registry.manifest(APP, Digest.of(bytes([number])))
            began = time.monotonic()
            seen = []
            for count in (1, 2):
                await until(partial(pinged, server, count))
                seen.append(int(time.monotonic() - began))
            assert ([1, 3], True) == (seen, registry.is_broken)
            await registry.close()

    asyncio.run(story())


def test_a_mirror_is_asked_too() -> None:
    """So that it can stand in again when it is back."""

    async def story() -> None:
        content = UpstreamContent()
        content.push_image(APP, "v1")
        home, mirror = UpstreamServer(content), UpstreamServer(content)
        registry = registry_at(home.address, mirror.address, limits=BRISK)
        with pytest.raises(UpstreamError):
            await registry.resolve(APP, Tag("v1"))
        with mirror:
            await until(lambda: len(mirror.requests) == 1)
            await registry.resolve(APP, Tag("v1"))
        await registry.close()

    asyncio.run(story())


def test_no_task_is_left() -> None:
    """There is none while all is well, one while an upstream is dead, and none after the end: not in the middle of a
    question, and not for a failure that comes later."""

    async def story() -> None:
        content = UpstreamContent()
        content.push_image(APP, "v1")
        server = UpstreamServer(content)
        with server:
            registry = registry_at(server.address, limits=BRISK)
            await registry.resolve(APP, Tag("v1"))
            assert 0 == probers()
        with pytest.raises(UpstreamError):
            await registry.resolve(APP, Tag("v1"))
        assert (True, 1) == (registry.is_broken, probers())
        server.faults = [Stall()]
        asked = len(server.requests)
        with server:
            await until(lambda: len(server.requests) > asked)
            await registry.close()
            assert 0 == probers()
            other = registry_at(server.address, limits=BRISK)
            await other.close()
        with pytest.raises(UpstreamError):
            await other.resolve(APP, Tag("v1"))
        assert 0 == probers()
        await registry.close()

    asyncio.run(story())

"""Whose failure it is: one thing's, another host's, or the registry's own. Only its own opens its circuit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from sluice.errors import UpstreamError, UpstreamUnreachable
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.testing.server import free_port
from sluice.testing.upstreams import (
    Cut,
    Failing,
    Fault,
    Redirect,
    Stall,
    Unauthorized,
    UpstreamContent,
    UpstreamServer,
    blackhole,
    make_tls,
    of_digest,
)
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import UpstreamLimits, UpstreamSettings
from sluice.wire.address import parse_upstream
from upstream.scripted import registry_at

APP = Repository("team/app")
LAYERS = (b"one", b"two", b"three", b"four")
BRISK = UpstreamLimits(connect_s=0.2, head_s=0.4, idle_s=0.4, backoff_s=0.001)


def held() -> tuple[UpstreamContent, Digest]:
    """An image with four layers, and its manifest's digest."""
    content = UpstreamContent()
    return content, content.push_image(APP, "v1", LAYERS)


async def failure(registry: RemoteRegistry, layer: bytes) -> UpstreamError:
    """What a layer's request raises."""
    with pytest.raises(UpstreamError) as caught:
        (await registry.open_blob(APP, Digest.of(layer))).close()
    return caught.value


async def check_spared(server: UpstreamServer, manifest: Digest) -> None:
    """Each layer fails at another host, and the registry goes on being asked for all else."""
    registry = registry_at(server.address, limits=BRISK)
    for layer in LAYERS:
        error = await failure(registry, layer)
        assert (True, False) == (error.elsewhere, registry.is_broken)
    assert manifest == (await registry.manifest(APP, manifest)).digest
    await registry.close()


@pytest.mark.parametrize(
    "fault",
    [
        Cut(before_head=True, when=of_digest(Digest.of(LAYERS[0]))),
        Cut(before_head=True, rst=True, when=of_digest(Digest.of(LAYERS[0]))),
        Stall(when=of_digest(Digest.of(LAYERS[0]))),
    ],
    ids=["hangs up", "resets", "stalls"],
)
def test_one_thing_that_brings_no_answer_is_not_the_upstreams_end(fault: Fault) -> None:
    """However often it is asked for and tried, all else is asked for as ever."""

    async def story() -> None:
        content, manifest = held()
        with UpstreamServer(content, faults=[fault]) as server:
            registry = registry_at(server.address, limits=BRISK)
            for _ in range(4):
                error = await failure(registry, LAYERS[0])
                assert (True, False) == ("not asked again" not in error.message, registry.is_broken)
            assert manifest == (await registry.manifest(APP, manifest)).digest
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("rst", [False, True], ids=["hangs up", "resets"])
def test_over_tls_it_is_the_same(tmp_path: Path, rst: bool) -> None:
    """The end of a connection that stood is tried again, and not taken for a failure of TLS."""

    async def story() -> None:
        content, manifest = held()
        tls = make_tls(tmp_path)
        cut = Cut(before_head=True, rst=rst, when=of_digest(Digest.of(LAYERS[0])))
        with UpstreamServer(content, tls=tls, faults=[cut]) as server:
            registry = RemoteRegistry(UpstreamSettings("t", parse_upstream(server.address), ca=tls.ca, limits=BRISK))
            for _ in range(2):
                error = await failure(registry, LAYERS[0])
                assert (UpstreamUnreachable, False) == (type(error), registry.is_broken)
            assert 6 == len(server.requests)
            assert manifest == (await registry.manifest(APP, manifest)).digest
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("fault", [Cut(before_head=True), Stall()], ids=["hangs up", "stalls"])
def test_an_upstream_that_answers_nothing_is_soon_known_for_it(fault: Fault) -> None:
    """One request counts once whatever its tries; the third thing that brings no answer opens the circuit."""

    async def story() -> None:
        content, _ = held()
        with UpstreamServer(content, faults=[fault]) as server:
            registry = registry_at(server.address, limits=BRISK)
            seen = []
            for layer in LAYERS[:3]:
                await failure(registry, layer)
                seen.append(registry.is_broken)
            assert [False, False, True] == seen
            await registry.close()

    asyncio.run(story())


def _hole() -> AbstractContextManager[str]:
    return blackhole()


@pytest.mark.parametrize(
    "storage",
    [
        lambda: nullcontext(f"http://127.0.0.1:{free_port()}"),
        lambda: nullcontext("http://nowhere.invalid"),
        lambda: nullcontext(f"https://127.0.0.1:{free_port()}"),
        _hole,
    ],
    ids=["refused", "no such name", "refused by TLS", "no answer to the connection"],
)
def test_a_dead_storage_is_not_the_upstreams_end(storage: Callable[[], AbstractContextManager[str]]) -> None:
    """Blobs that are redirected to a host that is dead fail, and manifests are asked for as ever."""

    async def story() -> None:
        content, manifest = held()
        with storage() as elsewhere, UpstreamServer(content, faults=[Redirect(elsewhere)]) as server:
            await check_spared(server, manifest)

    asyncio.run(story())


@pytest.mark.parametrize(
    "fault", [Failing(503), Cut(before_head=True), Stall()], ids=["answers 503", "hangs up", "stalls"]
)
def test_a_storage_that_fails_at_everything_is_not_the_upstreams_end(fault: Fault) -> None:
    """As a dead one: what another host answers says nothing about the registry."""

    async def story() -> None:
        content, manifest = held()
        with (
            UpstreamServer(content, faults=[fault]) as storage,
            UpstreamServer(content, faults=[Redirect(storage.address)]) as server,
        ):
            await check_spared(server, manifest)

    asyncio.run(story())


def test_a_dead_token_endpoint_is_the_upstreams_end() -> None:
    """Without tokens nothing can be had from a registry, whichever host was to give them."""

    async def story() -> None:
        content, manifest = held()
        realm = f"http://127.0.0.1:{free_port()}/token"
        with UpstreamServer(content, faults=[Unauthorized(anonymous=True, realm=realm)]) as server:
            registry = registry_at(server.address, limits=BRISK)
            with pytest.raises(UpstreamUnreachable):
                await registry.manifest(APP, manifest)
            assert registry.is_broken
            await registry.close()

    asyncio.run(story())

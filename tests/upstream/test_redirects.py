"""Redirects: followed to blob storage, and nowhere else."""

from __future__ import annotations

import asyncio
import base64

import pytest

from sluice.errors import UpstreamError, UpstreamInvalid, UpstreamUnauthorized
from sluice.upstream.exchange import Clients, Request, Response
from sluice.upstream.redirect import Target, parse_target
from sluice.upstream.settings import StaticPassword, UpstreamLimits, UpstreamSettings
from sluice.upstream.transport import Transport
from sluice.upstream.trust import Trust
from sluice.wire.address import parse_upstream
from upstream.scripted import BLOB, Answer, Asked, Scripted, always, content, plain, registry_at

USER = StaticPassword("robot", "secret")


def guarded(asked: Asked, location: str, status: int = 307) -> Answer:
    """Redirects whoever has the password."""
    if "authorization" not in asked.headers:
        return Answer(401, {"WWW-Authenticate": "Basic"})
    assert base64.b64decode(asked.headers["authorization"][6:]) == b"robot:secret"
    return Answer(status, {"Location": location}, b"see there")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_blobs_come_from_storage_elsewhere_without_our_credentials(status: int) -> None:
    """``Authorization`` stays with the upstream, ``Range`` goes along."""

    async def story() -> None:
        async with Scripted(plain) as storage, Scripted(plain) as home:
            home.script = lambda asked: guarded(asked, storage.url() + asked.path + "?sig=a%2Bb", status)
            registry = registry_at(home, credentials=USER)
            assert BLOB[5:] == await content(registry, 5)
            (asked,) = storage.asked
            assert "authorization" not in asked.headers
            assert "bytes=5-" == asked.headers["range"]
            assert ["a+b"] == asked.query["sig"]
            await registry.close()

    asyncio.run(story())


def test_a_redirect_to_itself_keeps_the_credentials() -> None:
    """A relative target too."""

    def script(asked: Asked) -> Answer:
        return plain(asked) if "moved" in asked.query else guarded(asked, f"{asked.path}?moved=1")

    async def story() -> None:
        async with Scripted(script) as home:
            registry = registry_at(home, credentials=USER)
            assert BLOB == await content(registry)
            assert "authorization" in home.asked[-1].headers
            await registry.close()

    asyncio.run(story())


def test_credentials_do_not_come_back_by_way_of_another_host() -> None:
    """Home, away, home: what is home again may have them again, what is away never has."""

    async def story() -> None:
        async with Scripted(plain) as away, Scripted(plain) as home:
            away.script = lambda asked: Answer(307, {"Location": home.url() + asked.path + "?again=1"})
            home.script = lambda asked: (
                plain(asked) if "again" in asked.query else guarded(asked, away.url() + asked.path)
            )
            registry = registry_at(home, credentials=USER)
            assert BLOB == await content(registry)
            assert [False] == ["authorization" in asked.headers for asked in away.asked]
            await registry.close()

    asyncio.run(story())


def test_a_stranger_cannot_ask_for_our_credentials() -> None:
    """A 401 from where we were sent to is not answered: no token endpoint of its choice hears from us."""

    async def story() -> None:
        async with Scripted(plain) as away, Scripted(plain) as home:
            away.script = always(Answer(401, {"WWW-Authenticate": f'Bearer realm="{away.url()}/token"'}))
            home.script = lambda asked: guarded(asked, away.url() + asked.path)
            registry = registry_at(home, credentials=USER)
            with pytest.raises(UpstreamUnauthorized):
                await content(registry)
            assert ["/token" in asked.path for asked in away.asked] == [False]
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("{home}{path}", "in a circle"),
        ("{home}{path}?n={count}", "more than 5 times"),
        ("ftp://127.0.0.1/x", "only http and https"),
        ("http://user:pass@127.0.0.1/x", "without a user"),
        ("http://127.0.0.1:99999/x", "no URL"),
        ("http://a b/x", "characters that no URL has"),
        ("", "without saying where"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_invalid(location: str, reason: str) -> None:
    """The message says why, and shows no user."""

    async def story() -> None:
        async with Scripted(plain) as home:

            def script(asked: Asked) -> Answer:
                target = location.format(home=home.url(), path=asked.path, count=len(home.asked))
                return Answer(307, {"Location": target} if location else {})

            home.script = script
            registry = registry_at(home)
            with pytest.raises(UpstreamInvalid, match=reason) as caught:
                await content(registry)
            assert "user:" not in caught.value.message
            await registry.close()

    asyncio.run(story())


def transport(address: str, *, allowed: bool = False) -> Transport:
    upstream = parse_upstream(address)
    settings = UpstreamSettings("test", upstream, limits=UpstreamLimits(allow_private_redirects=allowed))
    return Transport(upstream, settings, Clients(settings, Trust(None, None)))


@pytest.mark.parametrize(
    ("upstream", "target", "refused"),
    [
        ("https://192.0.2.1", "https://127.0.0.1/x", False),  # documentation's addresses count as inside
        ("https://1.1.1.1", "https://127.0.0.1/x", True),
        ("https://1.1.1.1", "https://localhost/x", True),
        ("https://1.1.1.1", "https://10.0.0.1/x", True),
        ("https://1.1.1.1", "https://169.254.169.254/latest", True),
        ("https://1.1.1.1", "https://[::1]/x", True),
        ("https://1.1.1.1", "https://[::ffff:10.0.0.1]/x", True),
        ("https://1.1.1.1", "https://2130706433/x", True),
        ("https://1.1.1.1", "https://1.1.1.1:8443/x", False),
        ("https://1.1.1.1", "https://8.8.8.8/x", False),
        ("https://10.0.0.1", "https://10.0.0.2/x", False),
        ("https://localhost", "https://127.0.0.1:1/x", False),
    ],
)
def test_what_is_inside_is_not_reached_from_outside(upstream: str, target: str, refused: bool) -> None:
    """By address and by name, in every spelling; an upstream that is inside itself may, and so may all if allowed."""

    async def story() -> None:
        await transport(upstream, allowed=True).check(parse_target(target))
        if refused:
            with pytest.raises(UpstreamInvalid, match="private address"):
                await transport(upstream).check(parse_target(target))
        else:
            await transport(upstream).check(parse_target(target))

    asyncio.run(story())


class Sent(Clients):
    """Clients that reach a server on loopback under the name of a public one."""

    def __init__(self, settings: UpstreamSettings, port: int) -> None:
        super().__init__(settings, Trust(None, None))
        self._port = port

    async def send(self, request: Request, *, own: bool) -> Response:
        local = Target(f"http://127.0.0.1:{self._port}/", "http", "127.0.0.1", self._port)
        response = await super().send(Request(request.method, local), own=own)
        response.target = request.target
        return response


def test_a_public_upstream_does_not_lead_us_inside() -> None:
    """The redirect is refused before anything is sent there."""

    async def story() -> None:
        async with Scripted(plain) as inside, Scripted(plain) as home:
            home.script = always(Answer(302, {"Location": inside.url() + "/secret"}))
            address = parse_upstream("http://1.1.1.1")
            settings = UpstreamSettings("test", address)
            sender = Transport(address, settings, Sent(settings, home.port))
            with pytest.raises(UpstreamError, match="private address"):
                await sender.send(Request("GET", sender.target("/v2/")))
            assert [] == inside.asked
            await sender._clients.close()

    asyncio.run(story())

"""``cache.authorize: upstream``: what our credentials fetched goes to whom the upstream itself would give it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pytest
from cache.scripted import Clock

from integration.callers import ask, basic, with_users
from sluice.cache.policy import CachePolicy
from sluice.cache.tenants import PROOF_S, Tenants
from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown
from sluice.oci.digest import Digest
from sluice.server.entitlement import Entitlement
from sluice.server.users import Role
from sluice.testing.client import Answer
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import Failing, Scheme, SeenRequest, Stall, Unauthorized, UpstreamContent, UpstreamServer
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import PasswordFile, UpstreamSettings
from sluice.wire.address import parse_upstream
from sluice.wire.route import parse_route

LAYER = b"private" * 40_000
SLOW_S = 5.0  # for which an upstream does not answer
USERS = [("ann", Role.READ, ()), ("bob", Role.READ, ())]


@dataclass
class Site:
    """A server that lets in whom its upstream lets: ``ann`` and, with credentials of its own, itself."""

    content: UpstreamContent
    upstream: UpstreamServer
    server: SluiceServer
    access: Unauthorized

    def get(self, path: str, caller: str = "ann") -> Answer:
        return ask(self.server, "GET", path, basic(caller))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """In Proxy mode, with an image at the upstream and nothing held."""
    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    password = tmp_path / "password"
    password.write_text("ours\n")
    data = with_users(tmp_path / "data", USERS)
    flags = ["--upstream-user", "sluice", "--upstream-password-file", str(password), "--cache-authorize", "upstream"]
    flags += ["--mode", "proxy", "--access-challenge", "basic"]
    with UpstreamServer(content) as upstream:
        access = Unauthorized(users={"sluice": "ours", "ann": "secret"}, scheme=Scheme.BASIC)
        upstream.faults = [access]
        with SluiceServer(data, *flags, "--upstream", upstream.address) as server:
            yield Site(content, upstream, server, access)


def test_a_tag_is_not_missing_because_another_one_is(site: Site) -> None:
    """While the upstream is slow to say that there is no such tag, the same caller gets a tag that there is."""

    def is_nope(request: SeenRequest) -> bool:
        return request.path.endswith("/nope")

    site.upstream.faults = [site.access, Stall(when=is_nope)]
    with ThreadPoolExecutor() as threads:
        nope = threads.submit(site.get, "team/app/manifests/nope")
        site.upstream.wait_for(lambda: any(map(is_nope, site.upstream.requests)))
        v1 = threads.submit(site.get, "team/app/manifests/v1")
        wait([v1], timeout=SLOW_S)
        site.upstream.faults = [site.access]
        assert [200, 404] == [v1.result().status, nope.result().status]


@pytest.mark.parametrize("path", ["manifests/v1", f"blobs/{Digest.of(LAYER)}", "tags/list"])
def test_what_a_404_says_of_a_caller(tmp_path: Path, path: str) -> None:
    """An upstream that says 404 to somebody who was in, and to us too, has lost the thing, and he stays in; where it
    has the thing for us, it hides it from him, and he is out."""

    def is_ann(request: SeenRequest) -> bool:
        return request.headers.get("authorization") == basic("ann")

    async def story(upstream: UpstreamServer) -> None:
        address, clock = parse_upstream(upstream.address), Clock()
        remote = RemoteRegistry(UpstreamSettings("", address, credentials=PasswordFile("sluice", password)))
        entitlement = Entitlement(remote, {}, Tenants(CachePolicy(), clock))
        await entitlement.require(route, ann)
        clock.now += PROOF_S
        upstream.faults = [access, Failing(404)]
        await entitlement.require(route, ann)
        upstream.faults = [access, Failing(404, when=is_ann)]
        for _ in range(2):
            with pytest.raises((ManifestUnknown, BlobUnknown, NameUnknown)):
                await entitlement.require(route, ann)
        await entitlement.close()
        await remote.close()

    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    route, ann = parse_route(f"/v2/team/app/{path}".encode()), basic("ann").encode()
    password = tmp_path / "password"
    password.write_text("ours\n")
    access = Unauthorized(users={"sluice": "ours", "ann": "secret"}, scheme=Scheme.BASIC)
    with UpstreamServer(content, faults=[access]) as upstream:
        asyncio.run(story(upstream))


@pytest.mark.parametrize("scheme", [Scheme.BASIC, Scheme.BEARER])
@pytest.mark.parametrize("mode", ["proxy", "direct"])
def test_the_upstream_decides_about_callers(tmp_path: Path, scheme: Scheme, mode: str) -> None:
    """A caller whom the upstream lets in gets manifests, blobs and tags, held or not; another one and one without
    credentials get nothing of it. In an outage that stays so for as long as it is remembered."""
    content = UpstreamContent()
    content.push_image("team/app", "v1", [LAYER])
    password = tmp_path / "password"
    password.write_text("ours\n")
    flags = ["--upstream-user", "sluice", "--upstream-password-file", str(password), "--cache-authorize", "upstream"]
    data = with_users(tmp_path / "data", USERS)
    with UpstreamServer(content) as upstream:
        upstream.faults = [Unauthorized(users={"sluice": "ours", "ann": "secret"}, scheme=scheme)]
        flags += ["--mode", mode, "--upstream", upstream.address, "--access-challenge", "basic"]
        with SluiceServer(data, *flags) as server:
            layer = f"team/app/blobs/{Digest.of(LAYER)}"
            paths = [layer, "team/app/manifests/v1", "team/app/tags/list"]
            for path in paths:
                assert [403, 200, 403] == [ask(server, "GET", path, basic(one)).status for one in ("bob", "ann", "bob")]
                assert 401 == ask(server, "GET", path).status
            assert LAYER == ask(server, "GET", layer, basic("ann")).body
            refusal = ask(server, "GET", layer, basic("bob"))
            assert ["DENIED"] == refusal.codes
            assert b"the upstream does not let user 'bob' pull from team/app" in refusal.body
            upstream.stop()
            assert ("proxy" == mode) == (200 == ask(server, "GET", layer, basic("ann")).status)
            assert 200 != ask(server, "GET", layer, basic("bob")).status


def test_tokens_of_ours_are_of_no_use(tmp_path: Path) -> None:
    """Where callers would come with our tokens, the server does not start, and says what to set."""
    flags = ["--mode", "proxy", "--upstream", "127.0.0.1:9", "--cache-authorize", "upstream"]
    with pytest.raises(Exception, match=r"set access\.challenge to basic"), SluiceServer(tmp_path / "data", *flags):
        pass

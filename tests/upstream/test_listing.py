"""Tags and referrers, whatever the upstream knows of paging."""

from __future__ import annotations

import asyncio
import json

import pytest

from sluice.errors import UpstreamInvalid
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.mediatype import OCI_INDEX
from sluice.upstream.settings import UpstreamLimits
from sluice.wire.listing import render_referrers, render_tags
from upstream.scripted import APP, MANIFEST_DIGEST, OCI_MANIFEST, STEADY, Answer, Asked, Scripted, always, registry_at

TAGS = [f"v{number:02d}" for number in range(10)]
PATH = "/v2/team/app/tags/list"


def paged(asked: Asked) -> Answer:
    """Pages of three at most, as the specification has them."""
    last, count = asked.query.get("last", [""])[0], min(3, int(asked.query["n"][0]))
    page = [tag for tag in TAGS if tag > last][:count]
    more = page and page[-1] != TAGS[-1]
    link = {"Link": f'<{PATH}?n={count}&last={page[-1]}>; rel="next"'} if more else {}
    return Answer(200, link, render_tags("team/app", page))


@pytest.mark.parametrize(
    ("limit", "last", "expected", "pages"),
    [
        (100, None, TAGS, 4),
        (3, None, TAGS[:3], 1),
        (4, "v05", TAGS[6:], 2),
        (5, "v00", TAGS[1:6], 2),
        (5, "v09", [], 1),
    ],
)
def test_tags_are_collected_from_pages(limit: int, last: str | None, expected: list[str], pages: int) -> None:
    """As many as are wanted, and no page more."""

    async def story() -> None:
        async with Scripted(paged) as server:
            registry = registry_at(server)
            assert expected == list(await registry.tags(APP, limit, last))
            assert pages == len(server.asked)
            await registry.close()

    asyncio.run(story())


def test_an_upstream_without_paging_or_order_is_put_right() -> None:
    """Sorted by bytes, cut, and only what follows ``last``."""

    async def story() -> None:
        async with Scripted(always(Answer(body=render_tags("x", ["b", "B", "a", "_", "1"])))) as server:
            registry = registry_at(server)
            assert ["B", "_", "a"] == list(await registry.tags(APP, 3, "1"))
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("target", "reason"),
    [("{path}?n=9", "been already"), ("{path}?n={count}", "more than 1000 pages|more than"), ("http://[", "no URL")],
)
def test_pages_without_end_are_refused(target: str, reason: str) -> None:
    """In a circle, or on and on: the bytes are bounded over all pages."""

    async def story() -> None:
        async with Scripted(paged) as server:

            def script(asked: Asked) -> Answer:
                link = target.format(path=PATH, count=len(server.asked) + 100)
                return Answer(200, {"Link": f'<{link}>; rel="next"'}, render_tags("x", ["a" * 100]))

            server.script = script
            registry = registry_at(server, limits=UpstreamLimits(listing_bytes=2000))
            with pytest.raises(UpstreamInvalid, match=reason):
                await registry.tags(APP, 9, None)
            assert len(server.asked) < 30
            await registry.close()

    asyncio.run(story())


def test_a_page_is_never_fetched_from_elsewhere() -> None:
    """Of a link only path and query count: behind a proxy a registry may call itself by another name."""

    def script(asked: Asked) -> Answer:
        if "last" in asked.query:
            return Answer(body=render_tags("x", ["b"]))
        return Answer(200, {"Link": f'<http://internal.invalid:9{PATH}?last=a>; rel="next"'}, render_tags("x", ["a"]))

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            assert ["a", "b"] == list(await registry.tags(APP, 9, None))
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("body", [b"<html>", b'{"tags":"v1"}', b" " * (STEADY.listing_bytes + 1)])
def test_what_is_no_list_is_not_an_empty_one(body: bytes) -> None:
    """Too long counts as well."""

    async def story() -> None:
        async with Scripted(always(Answer(body=body))) as server:
            registry = registry_at(server)
            with pytest.raises(UpstreamInvalid):
                await registry.tags(APP, 9, None)
            with pytest.raises(UpstreamInvalid):
                await registry.referrers(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())


ONE, TWO = sorted(
    (Referrer(Descriptor(OCI_MANIFEST, Digest.of(bytes([n])), n + 1), "a/b", {"k": "v"}) for n in range(2)),
    key=lambda referrer: referrer.descriptor.digest,
)


def test_referrers_come_in_digest_order_from_all_pages() -> None:
    """Each once."""
    path = f"/v2/team/app/referrers/{MANIFEST_DIGEST}"

    def script(asked: Asked) -> Answer:
        assert path == asked.path
        if asked.query:
            return Answer(body=render_referrers([ONE, TWO]))
        return Answer(200, {"Link": f'<{path}?page=2>; rel="next"'}, render_referrers([TWO]))

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            assert [ONE, TWO] == list(await registry.referrers(APP, MANIFEST_DIGEST))
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_an_upstream_without_referrers_has_them_under_a_tag(status: int, algorithm: str) -> None:
    """``sha256-<hex>``, the hex cut to 64 digits; where that is absent too, there are none."""
    subject = Digest.of(b"subject", algorithm)

    def script(asked: Asked) -> Answer:
        if "/referrers/" in asked.path:
            return Answer(status)
        if asked.path == f"/v2/team/app/manifests/{algorithm}-{subject.hex[:64]}":
            return Answer(200, {"Content-Type": OCI_INDEX}, render_referrers([TWO, ONE]))
        return Answer(404)

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            assert [ONE, TWO] == list(await registry.referrers(APP, subject))
            assert [] == list(await registry.referrers(APP, MANIFEST_DIGEST))
            await registry.close()

    asyncio.run(story())


def test_a_tag_that_only_looks_like_one_holds_no_referrers() -> None:
    """An image is no list of referrers."""
    image = {
        "schemaVersion": 2,
        "config": {"mediaType": "a/b", "digest": str(MANIFEST_DIGEST), "size": 1},
        "layers": [],
    }

    def script(asked: Asked) -> Answer:
        found = Answer(200, {"Content-Type": OCI_MANIFEST}, json.dumps(image).encode())
        return Answer(404) if "/referrers/" in asked.path else found

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            assert [] == list(await registry.referrers(APP, MANIFEST_DIGEST))
            await registry.close()

    asyncio.run(story())

"""What a registry that behaves gives, and how little it is asked."""

from __future__ import annotations

import asyncio

import pytest

import sluice
from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.mediatype import ACCEPTED
from sluice.oci.reference import Tag
from sluice.upstream.instance import RECEIVED_VIA, instance_id
from upstream.scripted import (
    APP,
    BLOB,
    BLOB_DIGEST,
    MANIFEST,
    MANIFEST_DIGEST,
    MANIFEST_HEADERS,
    OCI_MANIFEST,
    Answer,
    Asked,
    Scripted,
    content,
    plain,
    registry_at,
)

DESCRIPTOR = Descriptor(OCI_MANIFEST, MANIFEST_DIGEST, len(MANIFEST))
MANIFESTS = "/v2/team/app/manifests/"


def test_a_tag_is_resolved_by_one_head() -> None:
    """All media types in one value, no compression, our name, and who we are; below the upstream's path."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(server, prefix="/mirror/all")
            RECEIVED_VIA.set("1.1 before")
            assert DESCRIPTOR == await registry.resolve(APP, Tag("v1"))
            (asked,) = server.asked
            assert ("HEAD", "/v2/mirror/all/team/app/manifests/v1") == (asked.method, asked.path)
            assert ", ".join(ACCEPTED) == asked.headers["accept"]
            assert "identity" == asked.headers["accept-encoding"]
            assert f"sluice/{sluice.__version__}" == asked.headers["user-agent"]
            assert f"1.1 before, 1.1 sluice-{instance_id()}" == asked.headers["via"]
            assert "authorization" not in asked.headers
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "head",
    [
        Answer(405),
        Answer(501),
        Answer(200, {"Content-Type": OCI_MANIFEST}, MANIFEST),
        Answer(200, {**MANIFEST_HEADERS, "Docker-Content-Digest": "md5:x"}, MANIFEST),
        Answer(200, {**MANIFEST_HEADERS, "Content-Type": "application/json"}, MANIFEST),
        Answer(200, MANIFEST_HEADERS, chunked=True),
    ],
    ids=["405", "501", "no digest", "no such digest", "no type", "no length"],
)
def test_a_head_that_does_not_tell_enough_is_followed_by_get(head: Answer) -> None:
    """Digest, type and length then come from the bytes."""

    async def story() -> None:
        async with Scripted(lambda asked: head if asked.method == "HEAD" else plain(asked)) as server:
            registry = registry_at(server)
            assert DESCRIPTOR == await registry.resolve(APP, Tag("v1"))
            assert ["HEAD", "GET"] == [asked.method for asked in server.asked]
            await registry.close()

    asyncio.run(story())


def test_a_manifest_comes_by_digest_and_by_tag_in_one_get() -> None:
    """The exact bytes with their type."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(server)
            by_digest = await registry.manifest(APP, MANIFEST_DIGEST)
            by_tag = await registry.manifest_by_tag(APP, Tag("v1"))
            assert (MANIFEST, OCI_MANIFEST, MANIFEST_DIGEST) == (by_tag.raw, by_tag.media_type, by_tag.digest)
            assert by_digest == by_tag
            assert ["GET", "GET"] == [asked.method for asked in server.asked]
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("sent", ["application/octet-stream", "text/plain; charset=utf-8", ""])
def test_a_manifest_of_the_wrong_content_type_is_what_it_says_itself(sent: str) -> None:
    """Static file servers do not know the types."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(200, {"Content-Type": sent}, MANIFEST)) as server:
            registry = registry_at(server)
            assert OCI_MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).media_type
            await registry.close()

    asyncio.run(story())


def test_a_manifest_known_by_sha512_is_verified_by_it() -> None:
    """The digest by which it is asked for is the one that it gets."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(200, MANIFEST_HEADERS, MANIFEST)) as server:
            registry = registry_at(server)
            digest = Digest.of(MANIFEST, "sha512")
            assert digest == (await registry.manifest(APP, digest)).digest
            await registry.close()

    asyncio.run(story())


def test_absent_content_is_told_apart() -> None:
    """A blob, a manifest, a repository: each 404 is what it says, and is asked for once."""

    def script(asked: Asked) -> Answer:
        code = "NAME_UNKNOWN" if "nowhere" in asked.path else "MANIFEST_UNKNOWN"
        return Answer(404, body=b'{"errors":[{"code":"%s"}]}' % code.encode())

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            with pytest.raises(BlobUnknown):
                await registry.open_blob(APP, BLOB_DIGEST)
            with pytest.raises(ManifestUnknown):
                await registry.manifest(APP, MANIFEST_DIGEST)
            with pytest.raises(ManifestUnknown):
                await registry.resolve(APP, Tag("v1"))
            with pytest.raises(NameUnknown):
                await registry.manifest_by_tag(APP, Tag("nowhere"))
            with pytest.raises(NameUnknown):
                await registry.tags(APP, 10, None)
            assert 5 == len(server.asked)
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("offset", [0, 1, 65_536, len(BLOB) - 1, len(BLOB)])
def test_a_blob_comes_from_any_offset_in_one_request(offset: int) -> None:
    """Asked for by Range where it does not begin at the start; also from its very end."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(server)
            assert BLOB[offset:] == await content(registry, offset)
            (asked,) = server.asked
            assert (f"bytes={offset}-" if offset else None) == asked.headers.get("range")
            await registry.close()

    asyncio.run(story())


def test_a_read_elsewhere_asks_again_and_a_small_gap_is_read_over() -> None:
    """Reads that follow each other share one response."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            assert len(BLOB) == blob.size
            for start, length in [(0, 10), (10, 5000), (6000, 100), (900_000, 50), (900_050, 50), (0, 70_000)]:
                assert BLOB[start : start + length] == await blob.read(start, length)
            assert [None, "bytes=900000-", None] == [asked.headers.get("range") for asked in server.asked]
            assert b"" == await blob.read(0, 0)
            blob.close()
            blob.close()
            await registry.close()

    asyncio.run(story())


def test_a_registry_without_ranges_is_read_over() -> None:
    """A 200 to a ranged request begins at the start."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(body=BLOB)) as server:
            registry = registry_at(server)
            assert BLOB[700_001:] == await content(registry, 700_001)
            assert 1 == len(server.asked)
            await registry.close()

    asyncio.run(story())


def test_a_server_that_caps_ranges_is_asked_for_the_rest() -> None:
    """It said where its part ends."""

    def script(asked: Asked) -> Answer:
        start = int(asked.headers["range"][6:-1])
        end = min(start + 300_000, len(BLOB))
        return Answer(206, {"Content-Range": f"bytes {start}-{end - 1}/{len(BLOB)}"}, BLOB[start:end])

    async def story() -> None:
        async with Scripted(script) as server:
            registry = registry_at(server)
            assert BLOB[5:] == await content(registry, 5)
            assert 4 == len(server.asked)
            await registry.close()

    asyncio.run(story())


def test_a_blob_of_unknown_length_ends_where_it_ends() -> None:
    """Its size is None, and a read over its end returns what there is."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(body=BLOB, chunked=True)) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            assert blob.size is None
            assert BLOB[:100] == await blob.read(0, 100)
            assert BLOB[100:] == await blob.read(100, len(BLOB))
            assert b"" == await blob.read(len(BLOB), 1)
            blob.close()
            await registry.close()

    asyncio.run(story())


def test_an_empty_blob_is_empty() -> None:
    """Zero bytes are known to be zero."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer()) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, Digest.of(b""))
            assert (0, b"") == (blob.size, await blob.read_next(10))
            blob.close()
            await registry.close()

    asyncio.run(story())


def test_closing_a_blob_ends_its_transfer() -> None:
    """The server sees the connection go while it has more to send."""

    async def story() -> None:
        async with Scripted(lambda asked: Answer(body=BLOB, length=2 * len(BLOB), stall=True)) as server:
            registry = registry_at(server)
            blob = await registry.open_blob(APP, BLOB_DIGEST)
            assert BLOB[:10] == await blob.read(0, 10)
            blob.close()
            await asyncio.wait_for(server.gone.wait(), 10)
            await registry.close()

    asyncio.run(story())

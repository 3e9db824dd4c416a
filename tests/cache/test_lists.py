"""Lists that were seen outlive a restart, bounded in number and size; what was not seen is not made to look whole."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from cache.scripted import APP, LATEST, OTHER, POLICY, Cache, caching
from sluice.cache.answers import Kind
from sluice.cache.pages import ReferrersPage, TagsPage
from sluice.errors import NameUnknown, UpstreamTimeout
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.mediatype import OCI_MANIFEST
from sluice.oci.reference import Repository, Tag
from sluice.store import lists
from sluice.testing.content import image

CONFIG, LAYER = b"{}", b"layer"
IMAGE = image(CONFIG, LAYER)
REFERRER = Referrer(Descriptor(OCI_MANIFEST, Digest.of(b"signature"), 7), "application/x.signature", {"a": "b"})
PLAIN = replace(REFERRER, artifact_type=None, annotations={})
NEWER = Tag("newer")
DOWN = UpstreamTimeout("silent")

Told = tuple[object, Kind, str | None]


async def tags(cache: Cache, repository: Repository = APP) -> Told:
    fetched = await cache.pull.fetch_tags(repository, 10, None)
    return list(fetched.value), fetched.provenance.kind, fetched.provenance.reason


async def referrers(cache: Cache) -> Told:
    fetched = await cache.pull.fetch_referrers(APP, IMAGE.digest)
    return list(fetched.value), fetched.provenance.kind, fetched.provenance.reason


@pytest.mark.parametrize("referring", [[], [REFERRER, PLAIN]], ids=len)
async def test_lists_outlive_a_restart(tmp_path: Path, referring: list[Referrer]) -> None:
    """After a restart with the upstream dead, the lists are the last ones and not what happens to be held of them, an
    empty one as well; with the upstream alive, it is asked."""
    async with caching(tmp_path) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        cache.upstream.add_image(IMAGE, tag=NEWER)
        cache.upstream.referring = referring
        await cache.pull.resolve(APP, LATEST)
        assert [([LATEST, NEWER], Kind.UPSTREAM, None), (referring, Kind.UPSTREAM, None)] == [
            await tags(cache),
            await referrers(cache),
        ]
    async with caching(tmp_path) as cache:
        cache.upstream.error = DOWN
        for _ in range(2):
            assert ([LATEST, NEWER], Kind.STALE, "timeout") == await tags(cache)
            assert (referring, Kind.STALE, "timeout") == await referrers(cache)
        assert {"tags": 1, "referrers": 1} == cache.upstream.asked
        cache.clock.now += POLICY.negative_s
        cache.upstream.error = None
        cache.upstream.names[APP, NEWER] = IMAGE.digest
        assert ([NEWER], Kind.UPSTREAM, None) == await tags(cache)


async def test_what_is_held_is_not_all(tmp_path: Path) -> None:
    """A list that was never seen is what is held, and says so; with nothing held it is the upstream's error."""
    async with caching(tmp_path) as cache:
        cache.upstream.add_image(IMAGE, CONFIG, LAYER)
        cache.upstream.add_image(IMAGE, tag=NEWER)
        await cache.pull.resolve(APP, LATEST)
        cache.upstream.error = DOWN
        for _ in range(2):
            assert ([LATEST], Kind.STALE, "only what is held") == await tags(cache)
        for ask in (tags(cache, OTHER), referrers(cache)):
            with pytest.raises(UpstreamTimeout):
                await ask


@pytest.mark.parametrize("keep", [True, False])
async def test_a_list_that_is_gone(tmp_path: Path, keep: bool) -> None:
    """A repository that the upstream has deleted keeps its list where ``keep_gone`` says so, else it is forgotten."""
    async with caching(tmp_path, replace(POLICY, keep_gone=keep)) as cache:
        cache.upstream.names[APP, LATEST] = IMAGE.digest
        await tags(cache)
        cache.clock.now += POLICY.tag_fresh_s
        cache.upstream.names.clear()
        for _ in range(2):
            if keep:
                assert ([LATEST], Kind.STALE, "gone") == await tags(cache)
            else:
                with pytest.raises(NameUnknown):
                    await tags(cache)
            await cache.restart()
        assert (TagsPage(APP, 10, None).write([LATEST]) if keep else None) == await cache.store.lists.find(
            " " + TagsPage(APP, 10, None).question
        )


def test_pages_are_read_as_they_were_written() -> None:
    """Text and back, for tags and referrers; two questions are never kept under one."""
    ours, theirs = TagsPage(APP, 10, None), ReferrersPage(APP, IMAGE.digest)
    assert [LATEST, NEWER] == ours.read(ours.write([LATEST, NEWER]))
    assert [REFERRER, PLAIN] == theirs.read(theirs.write([REFERRER, PLAIN]))
    others = (TagsPage(OTHER, 10, None), TagsPage(APP, 11, None), TagsPage(APP, 10, "a"), TagsPage(APP, 10, ""))
    assert 6 == len({page.question for page in (ours, theirs, *others)})


async def test_lists_are_bounded(tmp_path: Path) -> None:
    """Those seen longest ago leave when there are too many, or too long ones; what is too long by itself is not kept,
    and nor is what it replaces."""
    async with caching(tmp_path) as cache:

        def fill(connection: sqlite3.Connection) -> list[int]:
            for number in range(lists.LISTS_MAX + 5):
                lists.keep_list(connection, f"q{number}", "[]", float(number))
            lists.keep_list(connection, "q5", "[1]", 2000.0)
            counts = [_count(connection)]
            for number in range(20):
                lists.keep_list(connection, f"long{number}", "x" * (lists.LIST_LENGTH_MAX - 9), 3000.0 + number)
            counts.append(_count(connection))
            lists.keep_list(connection, "long19", "x" * lists.LIST_LENGTH_MAX, 4000.0)
            return [*counts, _count(connection)]

        assert [lists.LISTS_MAX, 16, 15] == await cache.store.index.write(fill)
        assert [None, None, "x" * (lists.LIST_LENGTH_MAX - 9)] == [
            await cache.store.lists.find(question) for question in ("q7", "long3", "long4")
        ]


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM cached_lists").fetchone()[0])

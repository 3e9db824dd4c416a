"""Tags and the catalog of a running server, in pages (spec: "Listing Tags")."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.samples import encoded, outcome
from integration.test_manifests import next_page
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer

TAGS = sorted(["1", "10", "2", "A", "Z", "_x", "a", "a-b", "a.b", "latest", "z"])


def follow(client: RegistryClient, target: str | None, member: str) -> Iterator[list[str]]:
    """Every page of a listing from ``target`` on."""
    while target is not None:
        answer = client.request("GET", target)
        assert (200, "application/json") == (answer.status, answer.headers["content-type"])
        yield answer.json[member]
        target = next_page(answer)


def push_tags(client: RegistryClient, repository: str, tags: list[str]) -> bytes:
    """One image under many tags."""
    raw = encoded(client.image(repository, [b"layer"]))
    for tag in tags:
        client.push_manifest(repository, tag, raw)
    return raw


def test_tags_in_byte_order(client: RegistryClient, repository: str) -> None:
    """All tags come in byte order, whatever order they were pushed in, with the repository's name."""
    push_tags(client, repository, list(reversed(TAGS)))
    answer = client.request("GET", f"/v2/{repository}/tags/list")
    assert {"name": repository, "tags": TAGS} == answer.json
    assert "link" not in answer.headers


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 11, 12])
def test_tags_in_pages(client: RegistryClient, repository: str, size: int) -> None:
    """With n, Link leads to every tag once and ends exactly where the tags end."""
    push_tags(client, repository, TAGS)
    pages = list(follow(client, f"/v2/{repository}/tags/list?n={size}", "tags"))
    assert [TAGS[start : start + size] for start in range(0, len(TAGS), size)] == pages


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("last=a", TAGS[7:]),
        ("last=B", TAGS[4:]),
        ("last=zz", []),
        ("n=2&last=A", TAGS[4:6]),
        ("n=0", []),
        ("last=", TAGS),
    ],
)
def test_tags_after_last(client: RegistryClient, repository: str, query: str, expected: list[str]) -> None:
    """``last`` need not be a tag; the page begins behind it. No entries asked for brings none and no Link."""
    push_tags(client, repository, TAGS)
    answer = client.request("GET", f"/v2/{repository}/tags/list?{query}")
    assert expected == answer.json["tags"]
    assert ("link" in answer.headers) == (query == "n=2&last=A")


def test_more_tags_than_a_page_holds(server: SluiceServer, client: RegistryClient, repository: str) -> None:
    """Without n, or with a larger one, 1,000 tags come at a time, and Link leads to the rest."""
    tags = sorted(f"v{number}" for number in range(1_010))
    raw = push_tags(client, repository, tags[:1])

    def push(part: list[str]) -> None:
        pusher = RegistryClient(server)
        for tag in part:
            pusher.push_manifest(repository, tag, raw)
        pusher.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, [tags[start::8] for start in range(8)]))
    for query in ("", "?n=5000", f"?n={'9' * 30}"):
        assert [tags[:1000], tags[1000:]] == list(follow(client, f"/v2/{repository}/tags/list{query}", "tags"))


def test_repository_without_tags(client: RegistryClient, repository: str) -> None:
    """Where there is content but no tag the list is empty; where there is nothing at all, 404 NAME_UNKNOWN."""
    client.push_blob(repository, b"just a blob")
    assert {"name": repository, "tags": []} == client.request("GET", f"/v2/{repository}/tags/list").json
    absent = client.request("GET", f"/v2/{repository}-absent/tags/list")
    assert (404, ["NAME_UNKNOWN"]) == outcome(absent)


@pytest.mark.parametrize("place", ["{repository}/tags/list", "_catalog"])
@pytest.mark.parametrize("size", ["-1", "x", "1.5", "0x10", ""])
def test_bad_page_size(client: RegistryClient, repository: str, place: str, size: str) -> None:
    """A page size that is no whole number is refused with 400, never guessed."""
    push_tags(client, repository, ["v1"])
    answer = client.request("GET", f"/v2/{place.format(repository=repository)}?n={size}")
    assert (400, ["UNSUPPORTED"]) == outcome(answer)


def test_catalog_in_pages(client: RegistryClient, repository: str) -> None:
    """The catalog lists repositories with a manifest in byte order, in pages, and none with blobs alone."""
    names = [f"{repository}/{part}" for part in ("a", "a-b", "a/b", "b", "c")]
    for name in reversed(names):
        push_tags(client, name, ["v1"])
    client.push_blob(f"{repository}/blobs-only", b"blob")
    found: list[str] = []
    for page in follow(client, f"/v2/_catalog?n=2&last={repository}", "repositories"):
        assert len(page) <= 2
        found += [name for name in page if name.startswith(f"{repository}/")]
        if len(found) >= len(names) or not page or page[-1] > names[-1]:
            break
    assert names == found


def test_catalog_from_the_beginning(client: RegistryClient, repository: str) -> None:
    """Followed to its end, the catalog is sorted, repeats nothing and has this repository in it."""
    push_tags(client, repository, ["v1"])
    found = [name for page in follow(client, "/v2/_catalog?n=7", "repositories") for name in page]
    assert sorted(set(found)) == found
    assert repository in found

"""Deleting from a running server: immediate for readers, and in one repository only (spec: "Content Management")."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from integration.samples import artifact_of, encoded, outcome
from sluice.testing.client import OCI_MANIFEST, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

LAYER = b"a layer to delete"
ABSENT = digest_of(b"was never here")


def status(client: RegistryClient, place: str, method: str = "GET") -> int:
    """The status of one request."""
    return client.request(method, f"/v2/{place}").status


def warm(client: RegistryClient, *places: str) -> None:
    """Read often enough that answers come from memory."""
    assert [200] * 3 * len(places) == [status(client, place) for place in places * 3]


def test_deleted_tag_is_gone_at_once(client: RegistryClient, repository: str) -> None:
    """After the 202 the tag is unknown to GET, HEAD and the list; its manifest and the other tag are untouched."""
    digest = client.push_image(repository, "v1")
    client.push_image(repository, "v2")
    kept = [f"{repository}/manifests/{reference}" for reference in ("v2", digest)]
    warm(client, f"{repository}/manifests/v1", *kept)
    assert status(client, f"{repository}/manifests/v1", "DELETE") == 202
    assert (404, ["MANIFEST_UNKNOWN"]) == outcome(client.request("GET", f"/v2/{repository}/manifests/v1"))
    assert status(client, f"{repository}/manifests/v1", "HEAD") == 404
    assert ["v2"] == client.request("GET", f"/v2/{repository}/tags/list").json["tags"]
    warm(client, *kept)


def test_deleted_manifest_takes_its_tags_along(client: RegistryClient, repository: str) -> None:
    """After deletion by digest neither the digest nor any tag on it answers; another manifest still does."""
    digest = client.push_image(repository, "v1")
    client.push_image(repository, "same")
    other = client.push_image(repository, "other", [b"another layer"])
    gone = [f"{repository}/manifests/{reference}" for reference in ("v1", "same", digest)]
    warm(client, *gone, f"{repository}/manifests/{other}")
    assert status(client, f"{repository}/manifests/{digest}", "DELETE") == 202
    assert [404] * 6 == [status(client, place, method) for place in gone for method in ("GET", "HEAD")]
    assert ["other"] == client.request("GET", f"/v2/{repository}/tags/list").json["tags"]
    warm(client, f"{repository}/manifests/{other}", f"{repository}/manifests/other")


def test_deleted_blob_is_gone_at_once(client: RegistryClient, repository: str) -> None:
    """After the 202 a blob cannot be read, by range or conditionally neither, nor can a manifest be put over it."""
    document = client.image(repository, [LAYER])
    place = f"{repository}/blobs/{digest_of(LAYER)}"
    warm(client, place)
    assert status(client, place, "DELETE") == 202
    conditions = [{}, {"Range": "bytes=0-1"}, {"If-None-Match": f'"{digest_of(LAYER)}"'}]
    found = [client.request("GET", f"/v2/{place}", headers=condition) for condition in conditions]
    assert [(404, ["BLOB_UNKNOWN"])] * 3 == [outcome(answer) for answer in found]
    assert status(client, place, "HEAD") == 404
    refused = client.request("PUT", f"/v2/{repository}/manifests/v1", encoded(document), {"Content-Type": OCI_MANIFEST})
    assert (404, ["MANIFEST_BLOB_UNKNOWN"]) == outcome(refused)


def test_deleted_content_can_be_pushed_again(client: RegistryClient, repository: str) -> None:
    """What was deleted comes back by an ordinary push, whole."""
    digest = client.push_image(repository, "v1", [LAYER])
    for place in (f"manifests/{digest}", f"blobs/{digest_of(LAYER)}"):
        assert status(client, f"{repository}/{place}", "DELETE") == 202
    assert digest == client.push_image(repository, "v1", [LAYER])
    assert client.request("GET", f"/v2/{repository}/blobs/{digest_of(LAYER)}").body == LAYER
    warm(client, f"{repository}/manifests/v1", f"{repository}/manifests/{digest}")


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("manifests/absent", "MANIFEST_UNKNOWN"),
        (f"manifests/{ABSENT}", "MANIFEST_UNKNOWN"),
        (f"blobs/{ABSENT}", "BLOB_UNKNOWN"),
    ],
)
def test_delete_of_what_is_not_there(client: RegistryClient, repository: str, place: str, code: str) -> None:
    """Deleting what is not there is refused with 404 and the code, the second time as the first."""
    client.push_image(repository, "v1")
    for _ in range(2):
        assert (404, [code]) == outcome(client.request("DELETE", f"/v2/{repository}/{place}"))


def test_blob_is_readable_where_it_was_pushed_only(client: RegistryClient, repository: str) -> None:
    """A blob and a manifest of one repository are unknown in every other, whatever the client knows about them."""
    manifest = client.push_image(repository, "v1", [LAYER])
    client.push_image(f"{repository}/other", "v1", [b"something else"])
    for place in (f"blobs/{digest_of(LAYER)}", f"manifests/{manifest}"):
        for name in (f"{repository}/other", f"{repository}/absent"):
            assert [404, 404] == [status(client, f"{name}/{place}", method) for method in ("GET", "HEAD")]
            assert status(client, f"{name}/{place}", "DELETE") == 404
        assert status(client, f"{repository}/{place}") == 200


def test_delete_in_one_repository_leaves_the_other(client: RegistryClient, repository: str) -> None:
    """Content that two repositories hold stays readable in one when it is deleted from the other."""
    digests = {client.push_image(f"{repository}/{name}", "v1", [LAYER]) for name in ("a", "b")}
    assert len(digests) == 1
    for place in (f"manifests/{digests.copy().pop()}", f"blobs/{digest_of(LAYER)}"):
        assert status(client, f"{repository}/a/{place}", "DELETE") == 202
        assert [404, 200] == [status(client, f"{repository}/{name}/{place}") for name in ("a", "b")]


def test_moved_tag_is_never_seen_where_it_was(server: SluiceServer, client: RegistryClient, repository: str) -> None:
    """From the moment that a push is acknowledged every reader gets the new manifest, though others read all along."""
    documents = [encoded(client.image(repository, [b"layer"], annotations={"number": str(n)})) for n in range(30)]
    place = f"{repository}/manifests/latest"
    client.push_manifest(repository, "latest", documents[0])
    stop = Event()

    def read_on() -> int:
        reader, reads = RegistryClient(server), 0
        while not stop.is_set():
            assert status(reader, place) == 200
            reads += 1
        reader.close()
        return reads

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        try:
            for document in documents[1:]:
                client.push_manifest(repository, "latest", document)
                assert document == client.request("GET", f"/v2/{place}").body
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)


def test_deletion_beside_readers_is_final(server: SluiceServer, client: RegistryClient, repository: str) -> None:
    """A manifest deleted while others read it does not come back from memory."""
    document = artifact_of(None, "application/vnd.example")
    client.push_blob(repository, b"{}")
    stop = Event()

    def read_on() -> None:
        reader = RegistryClient(server)
        while not stop.is_set():
            assert status(reader, f"{repository}/manifests/v1") in {200, 404}
        reader.close()

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        try:
            for _ in range(30):
                digest = client.push_manifest(repository, "v1", document)
                assert status(client, f"{repository}/manifests/v1") == 200
                assert status(client, f"{repository}/manifests/{digest}", "DELETE") == 202
                assert [404] * 5 == [status(client, f"{repository}/manifests/v1") for _ in range(5)]
        finally:
            stop.set()
        for reader in readers:
            reader.result()

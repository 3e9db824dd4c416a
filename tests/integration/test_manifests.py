"""Pushing manifests to a running server, and what refers to what (spec: "Pushing Manifests", "Listing Referrers")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.samples import (
    EMPTY_CONFIG,
    Document,
    artifact_of,
    chosen,
    described,
    described_headers,
    docker_image,
    docker_list,
    encoded,
    index_of,
    outcome,
)
from sluice.oci.mediatype import DOCKER_FOREIGN_LAYER, DOCKER_LIST, DOCKER_MANIFEST
from sluice.testing.client import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Answer, RegistryClient, descriptor, digest_of
from sluice.testing.server import SluiceServer

SBOM = "application/vnd.example.sbom+json"
SIGNATURE = "application/vnd.example.signature"


def put(client: RegistryClient, repository: str, reference: str, document: object, kind: str = OCI_MANIFEST) -> Answer:
    """PUT a manifest and return whatever comes."""
    raw = document if isinstance(document, bytes) else encoded(document)
    return client.request("PUT", f"/v2/{repository}/manifests/{reference}", raw, {"Content-Type": kind})


def push_artifact(client: RegistryClient, repository: str, document: Document) -> Answer:
    """PUT an artifact by its digest, its empty config first."""
    client.push_blob(repository, EMPTY_CONFIG)
    return put(client, repository, digest_of(encoded(document)), document)


def referrers(client: RegistryClient, repository: str, subject: str, query: str = "") -> Answer:
    """GET the referrers of a digest."""
    return client.request("GET", f"/v2/{repository}/referrers/{subject}{query}")


def next_page(answer: Answer) -> str | None:
    """The path of the next page, from ``Link``."""
    link = answer.headers.get("link")
    if link is None:
        return None
    target, _, parameters = link.partition(">")
    assert (target[0], parameters) == ("<", '; rel="next"')
    return target[1:]


@pytest.mark.parametrize("kind", ["tag", "sha256", "sha512"])
def test_put_answers_with_place_and_digest(client: RegistryClient, repository: str, kind: str) -> None:
    """201 brings Location and Docker-Content-Digest, and no OCI-Subject where there is no subject."""
    document = client.image(repository, [b"layer"])
    digest = digest_of(encoded(document), "sha512" if kind == "sha512" else "sha256")
    answer = put(client, repository, "v1" if kind == "tag" else digest, document)
    expected = {"location": f"/v2/{repository}/manifests/{digest}", "docker-content-digest": digest}
    assert (201, expected, None) == (
        answer.status,
        chosen(answer.headers, expected),
        answer.headers.get("oci-subject"),
    )
    assert client.request("GET", answer.headers["location"]).body == encoded(document)


def test_missing_blobs_are_named(client: RegistryClient, repository: str) -> None:
    """A manifest over content that this repository lacks is refused naming it, and accepted once that is there."""
    document = client.image(repository, [b"layer"])
    document["layers"] = [descriptor(b"later", "application/vnd.oci.image.layer.v1.tar")]
    answer = put(client, repository, "v1", document)
    assert (404, ["MANIFEST_BLOB_UNKNOWN"]) == outcome(answer)
    assert answer.json["errors"][0]["detail"] == [digest_of(b"later")]
    assert client.request("GET", f"/v2/{repository}/manifests/v1").status == 404
    client.push_blob(repository, b"later")
    assert put(client, repository, "v1", document).status == 201


def test_content_of_another_repository_does_not_count(client: RegistryClient, repository: str) -> None:
    """A manifest that is complete in one repository is refused in another that holds none of its content."""
    document = client.image(repository, [b"layer"])
    assert (404, ["MANIFEST_BLOB_UNKNOWN"]) == outcome(put(client, f"{repository}/other", "v1", document))


def test_digest_that_is_not_the_manifests(client: RegistryClient, repository: str) -> None:
    """PUT at another digest than the bytes have is refused, and nothing is there afterwards."""
    wrong = digest_of(b"another")
    document = client.image(repository, [b"layer"])
    assert (400, ["DIGEST_INVALID"]) == outcome(put(client, repository, wrong, document))
    assert client.request("GET", f"/v2/{repository}/manifests/{wrong}").status == 404


def test_docker_schema_2(client: RegistryClient, repository: str) -> None:
    """Docker images and lists are kept as they are, each under its own media type."""
    image = docker_image(client, repository)
    several = docker_list(image)
    assert put(client, repository, digest_of(encoded(image)), image, DOCKER_MANIFEST).status == 201
    assert put(client, repository, "v1", several, DOCKER_LIST).status == 201
    for reference, document in (("v1", several), (digest_of(encoded(image)), image)):
        answer = client.request("GET", f"/v2/{repository}/manifests/{reference}")
        expected = described_headers(encoded(document), document["mediaType"])
        assert (200, expected) == (answer.status, chosen(answer.headers, expected))


def test_docker_schema_1_is_refused(client: RegistryClient, repository: str) -> None:
    """The format before schema 2 is refused, with a message that says what to do."""
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    answer = put(client, repository, "v1", {"schemaVersion": 1}, kind)
    assert (400, ["MANIFEST_INVALID"]) == outcome(answer)
    assert "schema 1" in answer.json["errors"][0]["message"]


@pytest.mark.parametrize(
    "media_type", ["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", DOCKER_FOREIGN_LAYER]
)
def test_layers_that_may_not_be_distributed(client: RegistryClient, repository: str, media_type: str) -> None:
    """A non-distributable layer is accepted as a reference, although its bytes are nowhere."""
    document = client.image(repository, [b"layer"])
    foreign = {**descriptor(b"elsewhere", media_type), "urls": ["https://example.org/layer"]}
    layers: Any = document["layers"]
    assert put(client, repository, "v1", {**document, "layers": [foreign, *layers]}).status == 201


def test_sparse_index(client: RegistryClient, repository: str, tmp_path: Path) -> None:
    """An index with an image that is not held is refused, and accepted by a server whose setting allows it."""
    held = client.image(repository, [b"layer"])
    absent = {**held, "annotations": {"platform": "not here"}}
    client.push_manifest(repository, digest_of(encoded(held)), held)
    refused = put(client, repository, "multi", index_of(held, absent), OCI_INDEX)
    assert (404, ["MANIFEST_BLOB_UNKNOWN"]) == outcome(refused)
    assert refused.json["errors"][0]["detail"] == [digest_of(encoded(absent))]
    with SluiceServer(tmp_path / "data", "--storage-sparse-indexes") as lenient:
        other = RegistryClient(lenient)
        other.push_manifest(repository, digest_of(encoded(held)), other.image(repository, [b"layer"]))
        assert put(other, repository, "multi", index_of(held, absent), OCI_INDEX).status == 201
        assert other.request("GET", f"/v2/{repository}/manifests/{digest_of(encoded(absent))}").status == 404
        other.close()


def test_index_of_indexes(client: RegistryClient, repository: str) -> None:
    """Indexes may hold indexes; each level has to be there before the one that names it."""
    image = client.image(repository, [b"layer"])
    inner = index_of(image)
    outer = index_of(inner)
    refused = [outcome(put(client, repository, "v1", document, OCI_INDEX)) for document in (outer, inner)]
    assert [(404, ["MANIFEST_BLOB_UNKNOWN"])] * 2 == refused
    client.push_manifest(repository, digest_of(encoded(image)), image)
    assert put(client, repository, digest_of(encoded(inner)), inner, OCI_INDEX).status == 201
    assert put(client, repository, "v1", outer, OCI_INDEX).status == 201


@pytest.mark.parametrize("subject_is_held", [True, False])
def test_subject(client: RegistryClient, repository: str, subject_is_held: bool) -> None:
    """PUT of a manifest with a subject says OCI-Subject, whether the subject is held or not, and is listed by it."""
    image = client.image(repository, [b"layer"])
    if subject_is_held:
        client.push_manifest(repository, "v1", image)
    document = artifact_of(image, SBOM)
    answer = push_artifact(client, repository, document)
    assert (201, digest_of(encoded(image))) == (answer.status, answer.headers["oci-subject"])
    listed = referrers(client, repository, digest_of(encoded(image))).json["manifests"]
    assert [{**described(document), "artifactType": SBOM}] == listed


def test_index_with_a_subject(client: RegistryClient, repository: str) -> None:
    """An index can refer to a subject too; it has no artifact type but the one that it states."""
    image = client.image(repository, [b"layer"])
    client.push_manifest(repository, digest_of(encoded(image)), image)
    plain = index_of(image, subject=described(image))
    typed = index_of(image, subject=described(image), artifactType=SBOM)
    for document in (plain, typed):
        answer = put(client, repository, digest_of(encoded(document)), document, OCI_INDEX)
        assert (201, digest_of(encoded(image))) == (answer.status, answer.headers["oci-subject"])
    listed = referrers(client, repository, digest_of(encoded(image))).json["manifests"]
    expected = [described(plain), {**described(typed), "artifactType": SBOM}]
    assert sorted(expected, key=lambda entry: entry["digest"]) == listed


def test_no_referrers(client: RegistryClient, repository: str) -> None:
    """Nothing refers to a digest: an empty index with 200, also in a repository that nobody has pushed to."""
    client.push_image(repository, "v1")
    for name in (repository, f"{repository}/absent"):
        answer = referrers(client, name, digest_of(b"nothing"))
        assert (200, OCI_INDEX) == (answer.status, answer.headers["content-type"])
        assert {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []} == answer.json


def test_referrers_by_type(client: RegistryClient, repository: str) -> None:
    """The filter is applied and said to be; an image's type is its config's; annotations come along."""
    subject = client.image(repository, [b"layer"])
    wanted = digest_of(encoded(subject))
    signed = artifact_of(subject, SIGNATURE, annotations={"by": "me"})
    push_artifact(client, repository, signed)
    push_artifact(client, repository, artifact_of(subject, SBOM))
    image = {**client.image(repository, [b"layer"]), "subject": described(subject)}
    client.push_manifest(repository, digest_of(encoded(image)), image)
    entries = {
        SIGNATURE: {**described(signed), "artifactType": SIGNATURE, "annotations": {"by": "me"}},
        OCI_CONFIG: {**described(image), "artifactType": OCI_CONFIG},
    }
    everything = referrers(client, repository, wanted)
    assert (3, None) == (len(everything.json["manifests"]), everything.headers.get("oci-filters-applied"))
    for kind, entry in entries.items():
        for written in (kind, kind.replace("+", "%2B").replace("/", "%2F")):
            answer = referrers(client, repository, wanted, f"?artifactType={written}")
            assert ([entry], "artifactType") == (answer.json["manifests"], answer.headers["oci-filters-applied"])
    assert [] == referrers(client, repository, wanted, "?artifactType=application/none").json["manifests"]


@pytest.mark.parametrize("query", ["?n=2", f"?n=2&artifactType={SBOM}"])
def test_referrers_in_pages(client: RegistryClient, repository: str, query: str) -> None:
    """Following Link brings every referrer once, the filter included."""
    subject = client.image(repository, [b"layer"])
    documents = [artifact_of(subject, SBOM, annotations={"number": str(number)}) for number in range(5)]
    for document in (*documents, artifact_of(subject, SIGNATURE)):
        push_artifact(client, repository, document)
    wanted = documents if "artifactType" in query else [*documents, artifact_of(subject, SIGNATURE)]
    pages = []
    target: str | None = f"/v2/{repository}/referrers/{digest_of(encoded(subject))}{query}"
    while target is not None:
        answer = client.request("GET", target)
        pages.append([entry["digest"] for entry in answer.json["manifests"]])
        target = next_page(answer)
    assert [2, 2, len(wanted) - 4] == [len(page) for page in pages]
    assert sorted(digest_of(encoded(document)) for document in wanted) == [digest for page in pages for digest in page]


def test_referrer_goes_with_its_deletion(client: RegistryClient, repository: str) -> None:
    """A referrer that is deleted is no longer listed; one whose subject is deleted still is."""
    subject = client.image(repository, [b"layer"])
    digest = client.push_manifest(repository, "v1", subject)
    first, second = artifact_of(subject, SBOM), artifact_of(subject, SIGNATURE)
    for document in (first, second):
        push_artifact(client, repository, document)
    for gone in (digest_of(encoded(first)), digest):
        assert client.request("DELETE", f"/v2/{repository}/manifests/{gone}").status == 202
    assert [digest_of(encoded(second))] == [
        entry["digest"] for entry in referrers(client, repository, digest).json["manifests"]
    ]

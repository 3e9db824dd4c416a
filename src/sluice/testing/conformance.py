"""What every ``Source`` and ``Sink`` must do, as functions that run on any implementation.

``source_sink_conformance`` runs all claims, each in a repository of its own, so that it can be run on a store that is
in use. The claims are listed in ``SOURCE_SINK_CLAIMS`` for tests that want to name the one that fails. A broken claim
raises AssertionError. ``testing.conformance_uploads`` does the same for ``Uploads``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

from sluice.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    StoreDamaged,
)
from sluice.oci.content import Descriptor, Sink, Source
from sluice.oci.digest import Digest
from sluice.oci.manifest import Manifest
from sluice.oci.mediatype import DOCKER_FOREIGN_LAYER, OCI_MANIFEST
from sluice.oci.reference import Repository, Tag
from sluice.testing.content import image, index, named, new_repository, push_blob, refused

ALL = 1000


class SourceSink(Source, Sink, Protocol):
    """A store that one can write to and read back from."""


async def _pushed_image(store: SourceSink, repository: Repository, *tags: str) -> Manifest:
    config, layer = secrets.token_bytes(40), secrets.token_bytes(400)
    await push_blob(store, repository, config)
    await push_blob(store, repository, layer)
    manifest = image(config, layer)
    for tag in tags:
        await store.put_manifest(repository, Tag(tag), manifest, "tester")
    return manifest


async def blob_comes_back(store: SourceSink) -> None:
    """A pushed blob is read back byte for byte, whole and in any part."""
    repository, data = new_repository(), secrets.token_bytes(300_000)
    descriptor = await push_blob(store, repository, data)
    assert (Digest.of(data), len(data)) == (descriptor.digest, descriptor.size)
    reader = await store.open_blob(repository, descriptor.digest)
    try:
        assert len(data) == reader.size
        assert data == await reader.read(0, reader.size or 0)
        assert data[1:2] == await reader.read(1, 1)
        assert data[299_990:] == await reader.read(299_990, 10)
        assert await reader.read(300_000, 0) == b""
        with refused(StoreDamaged):
            await reader.read(299_991, 10)
    finally:
        reader.close()
        reader.close()


async def blob_belongs_to_its_repository(store: SourceSink) -> None:
    """A blob is unknown in a repository that it was not pushed to, whether that one exists or not."""
    repository, other, absent = new_repository(), new_repository(), new_repository()
    descriptor = await push_blob(store, repository, secrets.token_bytes(10))
    await push_blob(store, other, secrets.token_bytes(10))
    for elsewhere in (other, absent):
        with refused(BlobUnknown):
            await store.open_blob(elsewhere, descriptor.digest)


async def blob_grows_by_writes(store: SourceSink) -> None:
    """A writer's offset counts the bytes of all its writes, and the commit sees them in order."""
    repository, parts = new_repository(), [secrets.token_bytes(size) for size in (1, 70_000, 0, 5)]
    writer = await store.begin_blob(repository)
    offsets = []
    for part in parts:
        await writer.write([part[:1], part[1:]])
        offsets.append(writer.offset)
    assert offsets == [1, 70_001, 70_001, 70_006]
    descriptor = await writer.commit(Digest.of(b"".join(parts)))
    reader = await store.open_blob(repository, descriptor.digest)
    assert b"".join(parts) == await reader.read(0, reader.size or 0)
    reader.close()


async def wrong_blob_is_dropped(store: SourceSink) -> None:
    """Bytes that do not have the promised digest are refused, and neither digest is readable."""
    repository, data, promised = new_repository(), secrets.token_bytes(20), Digest.of(secrets.token_bytes(20))
    writer = await store.begin_blob(repository)
    await writer.write([data])
    with refused(DigestInvalid):
        await writer.commit(promised)
    for digest in (promised, Digest.of(data)):
        with refused(BlobUnknown):
            await store.open_blob(repository, digest)


async def aborted_blob_is_gone(store: SourceSink) -> None:
    """An aborted blob is readable nowhere, and aborting twice is as good as once."""
    repository, data = new_repository(), secrets.token_bytes(20)
    writer = await store.begin_blob(repository)
    await writer.write([data])
    await writer.abort()
    await writer.abort()
    with refused(BlobUnknown):
        await store.open_blob(repository, Digest.of(data))


async def sha512_is_a_name_of_its_own(store: SourceSink) -> None:
    """Content is held under the algorithm that it was pushed with, manifest and blob alike."""
    repository, data = new_repository(), secrets.token_bytes(2_000)
    descriptor = await push_blob(store, repository, data, "sha512")
    reader = await store.open_blob(repository, Digest.of(data, "sha512"))
    assert data == await reader.read(0, descriptor.size)
    reader.close()
    with refused(BlobUnknown):
        await store.open_blob(repository, Digest.of(data))
    await push_blob(store, repository, data)
    manifest = image(data, algorithm="sha512")
    await store.put_manifest(repository, manifest.digest, manifest, "tester")
    assert manifest == await store.manifest(repository, manifest.digest)


async def manifest_comes_back(store: SourceSink) -> None:
    """A manifest is read back by tag and by digest with its bytes and media type; one pushed by digest has no tag."""
    repository = new_repository()
    tagged = await _pushed_image(store, repository, "v1")
    untagged = await _pushed_image(store, repository)
    await store.put_manifest(repository, untagged.digest, untagged, "tester")
    expected = Descriptor(OCI_MANIFEST, tagged.digest, len(tagged.raw))
    assert expected == await store.resolve(repository, Tag("v1"))
    assert expected == await store.resolve(repository, tagged.digest)
    assert tagged == await store.manifest(repository, tagged.digest)
    assert untagged == await store.manifest(repository, untagged.digest)
    assert [Tag("v1")] == list(await store.tags(repository, ALL, None))


async def unknown_is_told_apart(store: SourceSink) -> None:
    """A repository that does not exist is NameUnknown; what is missing from one that does is ManifestUnknown."""
    repository, absent, digest = new_repository(), new_repository(), Digest.of(secrets.token_bytes(9))
    await _pushed_image(store, repository, "v1")
    for reference in (Tag("v2"), digest):
        with refused(ManifestUnknown):
            await store.resolve(repository, reference)
        with refused(ManifestUnknown):
            await store.delete(repository, reference, "tester")
        with refused(NameUnknown):
            await store.resolve(absent, reference)
        with refused(NameUnknown):
            await store.delete(absent, reference, "tester")
    with refused(ManifestUnknown):
        await store.manifest(repository, digest)
    with refused(NameUnknown):
        await store.tags(absent, ALL, None)


async def manifest_needs_its_content(store: SourceSink) -> None:
    """A manifest is refused, naming what is missing, while a blob or child is not in this very repository; nothing of
    the refused one is visible, and once the content is there it is accepted."""
    repository, elsewhere = new_repository(), new_repository()
    config, layer = secrets.token_bytes(10), secrets.token_bytes(10)
    manifest = image(config, layer)
    await push_blob(store, repository, config)
    await push_blob(store, elsewhere, layer)
    with refused(ManifestBlobUnknown) as refusal:
        await store.put_manifest(repository, Tag("v1"), manifest, "tester")
    assert [str(Digest.of(layer))] == refusal.error.detail
    assert list(await store.tags(repository, ALL, None)) == []
    with refused(ManifestUnknown):
        await store.resolve(repository, manifest.digest)
    await push_blob(store, repository, layer)
    with refused(ManifestBlobUnknown) as refusal:
        await store.put_manifest(repository, Tag("all"), index(manifest), "tester")
    assert [str(manifest.digest)] == refusal.error.detail
    await store.put_manifest(repository, manifest.digest, manifest, "tester")
    await store.put_manifest(repository, Tag("all"), index(manifest), "tester")
    assert index(manifest).digest == (await store.resolve(repository, Tag("all"))).digest


async def foreign_layer_is_not_needed(store: SourceSink) -> None:
    """A layer that may not be distributed is accepted as a reference only."""
    repository, config = new_repository(), secrets.token_bytes(10)
    await push_blob(store, repository, config)
    manifest = image(config, layers=[named(DOCKER_FOREIGN_LAYER, secrets.token_bytes(10))])
    await store.put_manifest(repository, Tag("v1"), manifest, "tester")
    assert manifest.digest == (await store.resolve(repository, Tag("v1"))).digest


async def digest_reference_must_match(store: SourceSink) -> None:
    """A manifest is not accepted under another one's digest."""
    repository = new_repository()
    manifest = await _pushed_image(store, repository)
    with refused(DigestInvalid):
        await store.put_manifest(repository, Digest.of(b"another"), manifest, "tester")
    with refused(ManifestUnknown):
        await store.resolve(repository, manifest.digest)


async def tags_are_paged_in_byte_order(store: SourceSink) -> None:
    """Tags come in byte order; ``last`` need not exist; a limit of 0 gives none."""
    repository = new_repository()
    await _pushed_image(store, repository, "b", "a", "Z", "_", "10", "9")
    cases: Sequence[tuple[int, str | None, list[str]]] = (
        (ALL, None, ["10", "9", "Z", "_", "a", "b"]),
        (2, None, ["10", "9"]),
        (2, "9", ["Z", "_"]),
        (ALL, "Y", ["Z", "_", "a", "b"]),
        (ALL, "b", []),
        (0, None, []),
    )
    for limit, last, expected in cases:
        assert expected == list(await store.tags(repository, limit, last))


async def tag_moves_and_goes(store: SourceSink) -> None:
    """A tag names what was pushed last; deleting it leaves the manifest, deleting the manifest takes its tags."""
    repository = new_repository()
    first = await _pushed_image(store, repository, "latest", "v1")
    second = await _pushed_image(store, repository, "latest")
    assert second.digest == (await store.resolve(repository, Tag("latest"))).digest
    await store.delete(repository, Tag("latest"), "tester")
    with refused(ManifestUnknown):
        await store.resolve(repository, Tag("latest"))
    assert second == await store.manifest(repository, second.digest)
    await store.delete(repository, first.digest, "tester")
    assert list(await store.tags(repository, ALL, None)) == []
    for reference in (Tag("v1"), first.digest):
        with refused(ManifestUnknown):
            await store.resolve(repository, reference)


async def referrers_are_listed(store: SourceSink) -> None:
    """Manifests are listed under their subject, which need not exist, in digest order, with type and annotations."""
    repository, subject = new_repository(), Digest.of(secrets.token_bytes(10))
    assert list(await store.referrers(repository, subject)) == []
    config = secrets.token_bytes(10)
    await push_blob(store, repository, config)
    about = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 10}
    pushed = [
        image(config, subject=about, artifactType=f"application/x-{kind}", annotations={"kind": kind})
        for kind in ("signature", "sbom", "proof")
    ]
    for manifest in [*pushed, image(config)]:
        await store.put_manifest(repository, manifest.digest, manifest, "tester")
    found = await store.referrers(repository, subject)
    expected = sorted(pushed, key=lambda one: str(one.digest))
    assert [one.digest for one in expected] == [one.descriptor.digest for one in found]
    assert [one.artifact_type for one in expected] == [one.artifact_type for one in found]
    assert [one.annotations for one in expected] == [one.annotations for one in found]
    assert [len(one.raw) for one in expected] == [one.descriptor.size for one in found]
    assert list(await store.referrers(new_repository(), subject)) == []


SOURCE_SINK_CLAIMS = (
    blob_comes_back,
    blob_belongs_to_its_repository,
    blob_grows_by_writes,
    wrong_blob_is_dropped,
    aborted_blob_is_gone,
    sha512_is_a_name_of_its_own,
    manifest_comes_back,
    unknown_is_told_apart,
    manifest_needs_its_content,
    foreign_layer_is_not_needed,
    digest_reference_must_match,
    tags_are_paged_in_byte_order,
    tag_moves_and_goes,
    referrers_are_listed,
)


async def source_sink_conformance(store: SourceSink) -> None:
    """All claims about ``Source`` and ``Sink`` hold for ``store``."""
    for claim in SOURCE_SINK_CLAIMS:
        await claim(store)

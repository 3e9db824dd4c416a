"""What every ``Uploads`` must do, as functions that run on any implementation; the twin of ``testing.conformance``.

Each claim takes the uploads and a ``Source`` over the same store, to read back what was uploaded.
"""

from __future__ import annotations

import asyncio
import secrets

from sluice.errors import BlobUnknown, DigestInvalid, UploadRangeInvalid, UploadUnknown
from sluice.oci.content import Descriptor, Source, Uploads
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.testing.content import body, broken_body, new_repository, refused


async def upload_in_chunks(uploads: Uploads, source: Source) -> None:
    """Chunks add up; the offset is always where the next one starts; the blob is readable after the commit only."""
    repository, data = new_repository(), secrets.token_bytes(3_000_000)
    session = await uploads.start(repository, "sha256")
    assert await uploads.offset(repository, session) == 0
    assert await uploads.append(repository, session, 0, body(data[:10])) == 10
    pieces = [data[start : start + 64_000] for start in range(10, len(data), 64_000)]
    assert len(data) == await uploads.append(repository, session, 10, body(*pieces))
    assert len(data) == await uploads.append(repository, session, None, body())
    assert len(data) == await uploads.offset(repository, session)
    with refused(BlobUnknown):
        await source.open_blob(repository, Digest.of(data))
    descriptor = await uploads.commit(repository, session, Digest.of(data))
    assert (Digest.of(data), len(data)) == (descriptor.digest, descriptor.size)
    reader = await source.open_blob(repository, descriptor.digest)
    assert data == await reader.read(0, reader.size or 0)
    reader.close()


async def misplaced_chunk_is_refused(uploads: Uploads, source: Source) -> None:
    """A chunk that leaves a gap or goes back is refused with the offset that would be right, and changes nothing."""
    repository = new_repository()
    session = await uploads.start(repository, "sha256")
    await uploads.append(repository, session, 0, body(b"0123"))
    for wrong in (0, 3, 5, 1 << 60):
        with refused(UploadRangeInvalid) as refusal:
            await uploads.append(repository, session, wrong, body(b"x"))
        assert isinstance(refusal.error, UploadRangeInvalid)
        assert refusal.error.offset == 4
    assert await uploads.offset(repository, session) == 4
    await uploads.append(repository, session, 4, body(b"45"))
    assert (await uploads.commit(repository, session, Digest.of(b"012345"))).size == 6


async def broken_body_keeps_its_bytes(uploads: Uploads, source: Source) -> None:
    """What came before a disconnect counts: the client resumes at the offset and the whole is right."""
    repository, data = new_repository(), secrets.token_bytes(1_500_000)
    session = await uploads.start(repository, "sha256")
    try:
        await uploads.append(repository, session, 0, broken_body(data[:600_000], data[600_000:600_001]))
    except ConnectionResetError:
        pass
    else:
        raise AssertionError("the body's own error did not come through")
    assert await uploads.offset(repository, session) == 600_001
    await uploads.append(repository, session, 600_001, body(data[600_001:]))
    assert len(data) == (await uploads.commit(repository, session, Digest.of(data))).size


async def session_belongs_to_its_repository(uploads: Uploads, source: Source) -> None:
    """A session is unknown under another repository's name, after its end, and where it never was."""
    repository, other = new_repository(), new_repository()
    live, done, cancelled = [await uploads.start(repository, "sha256") for _ in range(3)]
    await uploads.commit(repository, done, Digest.of(b""))
    await uploads.cancel(repository, cancelled)
    for name, session in ((other, live), (repository, done), (repository, cancelled), (repository, "0" * 32)):
        with refused(UploadUnknown):
            await uploads.offset(name, session)
        with refused(UploadUnknown):
            await uploads.append(name, session, None, body(b"x"))
        with refused(UploadUnknown):
            await uploads.commit(name, session, Digest.of(b""))
        with refused(UploadUnknown):
            await uploads.cancel(name, session)
    assert await uploads.offset(repository, live) == 0
    await uploads.cancel(repository, live)


async def wrong_upload_is_dropped(uploads: Uploads, source: Source) -> None:
    """A commit with another digest than the bytes' is refused, and the session is gone with its bytes."""
    repository = new_repository()
    session = await uploads.start(repository, "sha256")
    await uploads.append(repository, session, None, body(b"these bytes"))
    with refused(DigestInvalid):
        await uploads.commit(repository, session, Digest.of(b"other bytes"))
    with refused(UploadUnknown):
        await uploads.offset(repository, session)
    for data in (b"these bytes", b"other bytes"):
        with refused(BlobUnknown):
            await source.open_blob(repository, Digest.of(data))


async def algorithm_may_change(uploads: Uploads, source: Source) -> None:
    """The commit's algorithm decides, whatever the session was started with; an unknown one starts nothing."""
    repository, data = new_repository(), secrets.token_bytes(100_000)
    for started, committed in (("sha256", "sha512"), ("sha512", "sha256"), ("sha512", "sha512")):
        session = await uploads.start(repository, started)
        await uploads.append(repository, session, 0, body(data))
        await uploads.commit(repository, session, Digest.of(data, committed))
        reader = await source.open_blob(repository, Digest.of(data, committed))
        assert data == await reader.read(0, reader.size or 0)
        reader.close()
    with refused(DigestInvalid):
        await uploads.start(repository, "md5")


async def one_digest_from_many(uploads: Uploads, source: Source) -> None:
    """Several sessions that commit the same content at once, in two repositories, all succeed."""
    repositories, data = (new_repository(), new_repository()), secrets.token_bytes(200_000)

    async def push(repository: Repository) -> Descriptor:
        session = await uploads.start(repository, "sha256")
        await uploads.append(repository, session, 0, body(data))
        return await uploads.commit(repository, session, Digest.of(data))

    done = await asyncio.gather(*(push(repositories[number % 2]) for number in range(8)))
    assert [(Digest.of(data), len(data))] * 8 == [(one.digest, one.size) for one in done]
    for repository in repositories:
        reader = await source.open_blob(repository, Digest.of(data))
        assert data == await reader.read(0, reader.size or 0)
        reader.close()


UPLOADS_CLAIMS = (
    upload_in_chunks,
    misplaced_chunk_is_refused,
    broken_body_keeps_its_bytes,
    session_belongs_to_its_repository,
    wrong_upload_is_dropped,
    algorithm_may_change,
    one_digest_from_many,
)


async def uploads_conformance(uploads: Uploads, source: Source) -> None:
    """All claims about ``Uploads`` hold; ``source`` reads what was uploaded."""
    for claim in UPLOADS_CLAIMS:
        await claim(uploads, source)

"""New content by one writer from beginning to end: ``BlobWriter`` over a session of ``store.uploads``.

``Sink.begin_blob`` hands one out, and so does the spool of a fill, whose readers follow it while it grows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from sluice.errors import UploadUnknown
from sluice.oci.content import Descriptor
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.blobs import LocalBlob
from sluice.store.uploads import LocalUploads
from sluice.store.words import Word


class LocalBlobWriter:
    """``BlobWriter`` over one session. ``word``: on whose word its content is linked (``store.words``)."""

    def __init__(self, uploads: LocalUploads, repository: Repository, session: str, word: Word | None = None) -> None:
        self._word = word
        self._uploads = uploads
        self._repository = repository
        self._session = session
        self._offset = 0

    @property
    def offset(self) -> int:
        """Bytes taken so far."""
        return self._offset

    async def write(self, data: Sequence[bytes]) -> None:
        """Append; raises StorageFull. After an error ``offset`` is still the truth."""
        try:
            self._offset = await self._uploads.append_batch(self._repository, self._session, data)
        except BaseException:
            with contextlib.suppress(UploadUnknown):
                self._offset = await self._uploads.offset(self._repository, self._session)
            raise

    async def commit(self, digest: Digest) -> Descriptor:
        """Verify, make durable, publish in the repository; raises DigestInvalid (the content is then dropped)."""
        return await self.commit_in(digest, ())

    async def verify(self, digest: Digest) -> None:
        """Raises DigestInvalid where the bytes written have another one (the content is then dropped)."""
        await self._uploads.verify(self._repository, self._session, digest)

    async def commit_in(self, digest: Digest, also: Sequence[Repository], *, replace: bool = False) -> Descriptor:
        """``commit``, readable in the repositories ``also`` too; ``replace`` what is held and was found damaged."""
        return await self._uploads.commit(
            self._repository, self._session, digest, also=also, replace=replace, word=self._word
        )

    async def tail(self) -> LocalBlob:
        """The bytes written so far and those to come, for reading; once there is at least one. Stays readable after
        ``commit`` and ``abort``."""
        return await self._uploads.tail(self._repository, self._session)

    async def abort(self) -> None:
        """Drop it; idempotent."""
        with contextlib.suppress(UploadUnknown):
            await self._uploads.cancel(self._repository, self._session)

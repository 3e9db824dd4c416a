"""Which contents are being read or brought in: what a cache must not evict just now.

A reader takes a lease before it looks content up, and drops it when it has closed it; a fill has one for as long as it
runs and is read. Eviction looks here inside its index change, and again before a file is unlinked. Garbage collection
of a registry does not: it leaves files for ``unlink_delay_s``.

A lease is a number in a dictionary. Taking and dropping are one atomic operation each, without a lock, for a reader's
end may come in the middle of anything (``LocalBlob.__del__``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository

Use = tuple[str, str]
"""A repository and a digest, as text."""


class Leases:
    """The leases of one store. For any thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._uses: dict[int, Use] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def take(self, repository: Repository, digest: Digest) -> int:
        """From here on the content is in use in this repository. Returns what ``drop`` takes."""
        number = next(self._numbers)
        self._uses[number] = (repository, str(digest))
        return number

    def drop(self, number: int) -> None:
        """Not any more, as far as this lease goes; idempotent."""
        self._uses.pop(number, None)

    @contextmanager
    def held(self, repository: Repository, digest: Digest) -> Iterator[None]:
        """A lease for as long as the block runs."""
        number = self.take(repository, digest)
        try:
            yield
        finally:
            self.drop(number)

    def uses(self) -> frozenset[Use]:
        """All that is in use."""
        return frozenset(list(self._uses.values()))

    def digests(self) -> frozenset[str]:
        """The contents that are in use, in whichever repository."""
        return frozenset(digest for _, digest in self.uses())

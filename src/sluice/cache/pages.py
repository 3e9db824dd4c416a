"""Pages of tags and of referrers as text, for the store to keep. PURE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag


@dataclass(frozen=True, slots=True)
class TagsPage:
    """The question for a page of tags."""

    repository: Repository
    limit: int
    last: str | None

    @property
    def question(self) -> str:
        """What the page is kept under."""
        return json.dumps(["tags", self.repository, self.limit, self.last])

    def write(self, page: Sequence[Tag]) -> str:
        """The page as text."""
        return json.dumps(list(page))

    def read(self, text: str) -> Sequence[Tag]:
        """What ``write`` wrote."""
        return [Tag(name) for name in json.loads(text)]


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """The question for what refers to ``subject``."""

    repository: Repository
    subject: Digest

    @property
    def question(self) -> str:
        """What the page is kept under."""
        return json.dumps(["referrers", self.repository, str(self.subject)])

    def write(self, page: Sequence[Referrer]) -> str:
        """The page as text."""
        return json.dumps([(*_describe(one.descriptor), one.artifact_type, one.annotations) for one in page])

    def read(self, text: str) -> Sequence[Referrer]:
        """What ``write`` wrote."""
        return [
            Referrer(Descriptor(media_type, Digest.parse(digest), size), artifact_type, annotations)
            for media_type, digest, size, artifact_type, annotations in json.loads(text)
        ]


def _describe(one: Descriptor) -> tuple[str, str, int]:
    return one.media_type, str(one.digest), one.size

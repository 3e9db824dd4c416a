"""What a check of the store found: the report of ``store.scrub``, bounded so that it fits into one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sluice.store.closure import Incomplete

LISTED_MAX = 300  # findings of each sort that a report lists; all are counted


@dataclass(frozen=True, slots=True)
class Damaged:
    """Held content that is not what it should be; ``quarantined`` is its file's new name, where it was moved."""

    digest: str
    problem: str
    repositories: tuple[str, ...]
    quarantined: str | None


@dataclass(frozen=True, slots=True)
class Stray:
    """A file under ``content/`` that no row knows; ``path`` is relative to the data directory."""

    path: str
    bytes: int
    quarantined: str | None


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What a check found. ``counts`` has the full number of each sort of finding, the lists up to ``LISTED_MAX``.

    ``index``: SQLite's complaints about the index's file; with one, nothing else was looked at. ``rows``:
    contradictions in the index. ``incomplete``: images that cannot be pulled whole. ``contents`` files and ``bytes``
    were checked; ``repaired``: whether damage and strays were put away and rows reconciled.
    """

    index: tuple[str, ...]
    damaged: tuple[Damaged, ...]
    strays: tuple[Stray, ...]
    rows: tuple[str, ...]
    incomplete: tuple[Incomplete, ...]
    counts: Mapping[str, int]
    contents: int
    bytes: int
    repaired: bool
    duration_s: float

    @property
    def clean(self) -> bool:
        """Whether there was nothing to find."""
        return not any(self.counts.values())


@dataclass(slots=True)
class Findings:
    """The report's lists in the making, each bounded."""

    index: list[str] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    incomplete: list[Incomplete] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("index", "damaged", "strays", "rows", "incomplete"), 0)
    )

    def add(self, sort: str, finding: object) -> None:
        """Count a finding of ``sort``, the name of a list, and list it while there is room."""
        self.counts[sort] += 1
        listed = getattr(self, sort)
        if len(listed) < LISTED_MAX:
            listed.append(finding)

    def report(self, contents: int, size: int, *, repaired: bool, duration_s: float) -> FsckReport:
        """The report, as far as found; ``size`` bytes were read."""
        return FsckReport(
            index=tuple(self.index),
            damaged=tuple(self.damaged),
            strays=tuple(self.strays),
            rows=tuple(self.rows),
            incomplete=tuple(self.incomplete),
            counts=dict(self.counts),
            contents=contents,
            bytes=size,
            repaired=repaired,
            duration_s=duration_s,
        )

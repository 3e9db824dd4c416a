"""On whose word a row of the index is there: what one upstream gave is not taken for what another one says.

A cache enters blobs, manifests and what it knows of tags on the word of the upstream that they came from: its address
with the path (``Word``). It sees those rows, and what was pushed here, whose word is NULL; what another upstream gave
to the same repository, before ``upstream`` was changed, is as if it were not there until its own upstream gives it too.
Whoever has no upstream (Local mode, garbage collection, the commands) sees everything.
"""

from __future__ import annotations

from collections.abc import Callable

from sluice.oci.reference import Repository

Word = Callable[[Repository], str | None]
"""Which upstream speaks for a repository now."""

WORD_TAKEN = "upstream = CASE WHEN upstream IS NULL THEN NULL ELSE excluded.upstream END"
"""In an upsert: the last one who gave it counts, and what was pushed here stays so."""


def visible(row: str) -> str:
    """The condition under which ``row``, a table's alias, is there for the upstream ``:word``."""
    return f"(:word IS NULL OR {row}.upstream IS NULL OR {row}.upstream = :word)"

"""What an operator can set about the store: read once by ``LocalStore.open``, filled in by ``config``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Limits and delays of one store.

    ``reserve_bytes``: free bytes on the disk below which writes are refused. ``uploads_max``: open upload sessions.
    ``upload_age_s``: seconds without a byte after which a session is dropped. ``sparse_indexes``: accept an index
    whose manifests are not all held. ``history_per_tag``: rows of history kept for each tag. ``unlink_delay_s``:
    seconds between the end of a content's row and the end of its file. ``grace_s``: seconds for which garbage
    collection spares what a writer has touched. ``write_bytes_per_s``: ceiling over all fills together, and over pushes
    too with ``pace_pushes``; 0: none.
    """

    reserve_bytes: int = 1 << 30
    uploads_max: int = 1000
    upload_age_s: float = 86_400.0
    sparse_indexes: bool = False
    history_per_tag: int = 50
    unlink_delay_s: float = 60.0
    grace_s: float = 86_400.0
    write_bytes_per_s: int = 200_000_000
    pace_pushes: bool = False

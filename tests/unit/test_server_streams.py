"""How much memory streams may hold together."""

from __future__ import annotations

import pytest

from sluice.server.blobs import SLICE_BYTES_MAX, SLICE_BYTES_MIN, SLICES_IN_FLIGHT, Streams

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("active", "sent", "expected"),
    [
        (1, 0, SLICE_BYTES_MIN),
        (1, MIB // 2, 64 * 1024),
        (1, MIB, 128 * 1024),
        (1, 4 * MIB, SLICE_BYTES_MAX),
        (4, 100 * MIB, SLICE_BYTES_MAX),
        (8, 100 * MIB, 256 * 1024),
        (32, 100 * MIB, 64 * 1024),
        (64, 100 * MIB, 32 * 1024),
        (5000, 100 * MIB, SLICE_BYTES_MIN),
    ],
)
def test_slices_grow_with_progress_and_shrink_with_company(active: int, sent: int, expected: int) -> None:
    """Slices are powers of two between the minimum and the maximum."""
    streams = Streams(16 * MIB)
    streams.active = active
    assert expected == streams.slice_bytes(sent)


@pytest.mark.parametrize("active", range(1, 171))
def test_the_budget_is_kept_while_the_minimum_allows_it(active: int) -> None:
    """All streams together hold no more than the budget."""
    streams = Streams(16 * 1024 * 1024)
    streams.active = active
    assert (
        active * SLICES_IN_FLIGHT * streams.slice_bytes() <= streams.budget_bytes
        or streams.slice_bytes() == SLICE_BYTES_MIN
    )
    assert streams.slice_bytes(1 << 40) <= SLICE_BYTES_MAX

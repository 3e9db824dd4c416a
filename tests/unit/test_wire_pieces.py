"""Bytes in pieces: what goes in comes out, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sluice.wire.pieces import Pieces


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 30)))
def test_what_goes_in_comes_out(given_pieces: list[bytes], limits: list[int]) -> None:
    """Takes of any size give the bytes in order, never more than asked for, fewer only where there are no more."""
    whole, pieces, out = b"".join(given_pieces), Pieces(), b""
    for piece in given_pieces:
        pieces.append(piece)
    for limit in limits:
        data = pieces.take(limit)
        assert (type(data), len(data)) == (bytes, min(limit, len(whole) - len(out)))
        out += data
        assert len(pieces) == len(whole) - len(out)
    assert out + pieces.take(len(whole)) == whole
    pieces.append(b"x")
    pieces.clear()
    assert (len(pieces), pieces.take(1)) == (0, b"")

"""Ranges: RFC 9110 section 14 for downloads, the specification's own form for uploads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import RangeNotSatisfiable, RequestInvalid
from sluice.wire.ranges import (
    POSITION_MAX,
    ByteRange,
    content_range,
    parse_content_range,
    parse_range,
    resolve,
    upload_range,
)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-499", ByteRange(0, 499)),
        ("bytes=500-", ByteRange(500, None)),
        ("bytes=-500", ByteRange(None, 500)),
        ("bytes=-0", ByteRange(None, 0)),
        ("BYTES=7-7", ByteRange(7, 7)),
        (" bytes = 1-2 ", ByteRange(1, 2)),
        ("bytes=00000000000000000000001-2", ByteRange(1, 2)),
        ("bytes=" + "9" * 5000 + "-", ByteRange(POSITION_MAX, None)),
        ("bytes=9223372036854775808-", ByteRange(POSITION_MAX, None)),
    ],
)
def test_one_range_of_bytes_is_understood(header: str, wanted: ByteRange) -> None:
    """All three forms, whatever the unit's case and the numbers' length."""
    assert wanted == parse_range(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=1-2,5-6",
        "bytes=1-2,",
        "bytes=+1-2",
        "bytes=1-2-3",
        "bytes=\u0663-",
        "lines=0-1",
        "0-1",
        "bytes 0-1",
        "bytes=0-1\n",
    ],
)
def test_any_other_range_is_ignored(header: str | None) -> None:
    """Other units, several ranges and bad syntax mean that everything is sent."""
    assert parse_range(header) is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ByteRange(0, 0), (0, 1)),
        (ByteRange(0, 9), (0, 10)),
        (ByteRange(0, 99), (0, 10)),
        (ByteRange(9, None), (9, 1)),
        (ByteRange(0, None), (0, 10)),
        (ByteRange(None, 3), (7, 3)),
        (ByteRange(None, 10), (0, 10)),
        (ByteRange(None, POSITION_MAX), (0, 10)),
    ],
)
def test_a_range_is_cut_to_the_content(wanted: ByteRange, expected: tuple[int, int]) -> None:
    """In a content of ten bytes."""
    assert expected == resolve(wanted, 10)


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (ByteRange(10, None), 10),
        (ByteRange(10, 20), 10),
        (ByteRange(None, 0), 10),
        (ByteRange(0, None), 0),
        (ByteRange(None, 5), 0),
        (ByteRange(POSITION_MAX, None), 10),
    ],
)
def test_a_range_outside_the_content_is_refused(wanted: ByteRange, size: int) -> None:
    """The error carries the whole size for Content-Range."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        resolve(wanted, size)
    assert size == caught.value.size


sizes = st.integers(1, 200)


@given(sizes, st.integers(0, 250), st.integers(0, 250) | st.none())
def test_a_range_selects_what_a_slice_selects(size: int, first: int, last: int | None) -> None:
    """Against Python's own slicing of the same bytes."""
    content = bytes(range(size))
    wanted = parse_range(f"bytes={first}-{'' if last is None else last}")
    if last is not None and last < first:
        assert wanted is None
        return
    assert wanted is not None
    expected = content[first:] if last is None else content[first : last + 1]
    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            resolve(wanted, size)
        return
    start, length = resolve(wanted, size)
    assert expected == content[start : start + length]


@given(sizes, st.integers(1, 250))
def test_a_suffix_selects_the_end(size: int, count: int) -> None:
    """Against Python's own slicing of the same bytes."""
    content = bytes(range(size))
    wanted = parse_range(f"bytes=-{count}")
    assert wanted is not None
    start, length = resolve(wanted, size)
    assert content[-count:] == content[start : start + length]


def test_content_range_is_inclusive() -> None:
    """RFC 9110 section 14.4's own example."""
    assert content_range(42, 1192, 1234) == "bytes 42-1233/1234"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-1023", (0, 1023)),
        ("5-5", (5, 5)),
        ("bytes 0-1023/*", (0, 1023)),
        ("bytes 0-1023/2048", (0, 1023)),
        ("bytes 0-1023", (0, 1023)),
        (" 0-1/2\t", (0, 1)),
    ],
)
def test_a_chunk_says_where_it_lies(text: str, expected: tuple[int, int]) -> None:
    """The specification's form and HTTP's are both understood."""
    assert expected == parse_content_range(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "0-",
        "5-4",
        "a-b",
        "0-1,2-3",
        "bytes=0-1",
        "bytes */5",
        "0-5/5",
        "0-1/",
        "9" * 19 + "-" + "9" * 19,
        "\u0663-\u0664",
    ],
)
def test_a_chunk_that_does_not_say_so_is_refused(text: str) -> None:
    """Nothing is guessed about where bytes belong."""
    with pytest.raises(RequestInvalid, match="Content-Range"):
        parse_content_range(text)


@given(st.integers(1, 10**17))
def test_a_session_tells_its_last_byte(offset: int) -> None:
    """What the session tells, read as a chunk's place, ends where the next chunk starts."""
    assert (0, offset - 1) == parse_content_range(upload_range(offset))


def test_a_session_without_bytes_tells_0_0() -> None:
    """As every registry does."""
    assert upload_range(0) == "0-0"

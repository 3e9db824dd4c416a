"""Query strings: last values, every value, page sizes, and bounds."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import RequestInvalid
from sluice.wire.query import PAGE_SIZE_MAX, PARAMETERS_MAX, QUERY_LENGTH_MAX, Query, parse_query

plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@given(st.lists(st.tuples(plain, plain), max_size=12))
def test_what_a_form_encoder_writes_is_what_is_read(pairs: list[tuple[str, str]]) -> None:
    """As a dict of last values, and as every value in order."""
    query = parse_query(urlencode(pairs).encode())
    assert dict(pairs) == query
    assert all(tuple(v for k, v in pairs if k == name) == query.all(name) for name, _ in pairs)


def test_repeated_and_valueless_parameters() -> None:
    """The last value wins; a name alone has the empty value; empty parts are none; a value may hold '='."""
    query = parse_query(b"scope=a+b&&n=1&flag&n=2&scope=c%20d&x=1=2&")
    assert query == {"scope": "c d", "n": "2", "flag": "", "x": "1=2"}
    assert (query.all("scope"), query.all("none")) == (("a b", "c d"), ())


@pytest.mark.parametrize(
    "raw",
    [
        b"a=%",
        b"a=%2",
        b"%zz=1",
        b"a=%ff",
        b"%C0%AF=a",
        b"a=\xff",
        b"a=%00",
        b"a%0a=1",
        b"a=%7f",
        b"a=" + b"x" * (QUERY_LENGTH_MAX - 1),
        b"&".join([b"a=1"] * (PARAMETERS_MAX + 1)),
    ],
)
def test_a_bad_query_is_refused(raw: bytes) -> None:
    """Bad escapes, bad UTF-8, control characters and too much of anything."""
    with pytest.raises(RequestInvalid, match="query"):
        parse_query(raw)


def test_the_limits_themselves_are_allowed() -> None:
    """QUERY_LENGTH_MAX bytes and PARAMETERS_MAX parameters are parsed."""
    assert len(parse_query(b"a=" + b"x" * (QUERY_LENGTH_MAX - 2))["a"]) == QUERY_LENGTH_MAX - 2
    assert len(parse_query(b"&".join(b"%d=1" % n for n in range(PARAMETERS_MAX)))) == PARAMETERS_MAX


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", PAGE_SIZE_MAX),
        (b"n=0", 0),
        (b"n=000", 0),
        (b"n=7", 7),
        (b"n=0007", 7),
        (b"n=1000", 1000),
        (b"n=1001", PAGE_SIZE_MAX),
        (b"n=" + b"9" * 5000, PAGE_SIZE_MAX),
    ],
)
def test_a_page_has_at_most_its_cap(raw: bytes, expected: int) -> None:
    """Absent and larger mean the cap; zero asks for an empty page."""
    assert expected == parse_query(raw).page_size()


@pytest.mark.parametrize("raw", [b"n=", b"n=-1", b"n=+1", b"n=1.0", b"n=x", b"n=1_0", b"n=%D9%A3", b"n=1&n=x"])
def test_a_page_size_that_is_no_number_is_refused(raw: bytes) -> None:
    """The message names the parameter."""
    with pytest.raises(RequestInvalid, match="parameter n "):
        parse_query(raw).page_size()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"artifactType=application%2Fspdx%2Bjson", "application/spdx+json"),
        (b"artifactType=application/spdx+json", "application/spdx+json"),
        (b"", None),
    ],
)
def test_an_artifact_type_keeps_its_plus(raw: bytes, expected: str | None) -> None:
    """Escaped or not: a media type holds no space."""
    assert expected == parse_query(raw).artifact_type()


@given(st.binary(max_size=60))
def test_any_octets_are_a_query_or_refused(raw: bytes) -> None:
    """Nothing that a client can send as a query fails otherwise."""
    try:
        query = parse_query(raw)
    except RequestInvalid as error:
        refused = error.message
    else:
        refused = ""
        assert Query(query.pairs) == query
    assert refused.encode().decode() == refused

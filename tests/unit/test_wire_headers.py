"""Link and entity tags."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.oci.digest import Digest
from sluice.wire.etag import digest_etag, none_match
from sluice.wire.link import next_link
from sluice.wire.query import parse_query

DIGEST = Digest("sha256", "a" * 64)
plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def test_a_link_is_the_specifications() -> None:
    """Relative, escaped, with the relation next."""
    expected = '</v2/team/app/tags/list?n=2&last=v1>; rel="next"'
    assert expected == next_link("/v2/team/app/tags/list", {"n": "2", "last": "v1"})


@given(st.dictionaries(st.text("abcn", min_size=1), plain, min_size=1, max_size=4))
def test_a_link_brings_back_its_parameters(parameters: dict[str, str]) -> None:
    """Whatever is in them: the header is ASCII, the target has no character that would end it."""
    header = next_link("/v2/_catalog", parameters)
    match = re.fullmatch(r'</v2/_catalog\?([!-~]*)>; rel="next"', header)
    assert match is not None
    assert ">" not in match[1]
    assert parameters == parse_query(match[1].encode())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ("*", True),
        (" * ", True),
        (digest_etag(DIGEST), True),
        ("W/" + digest_etag(DIGEST), True),
        (f'"x", W/"y" ,{digest_etag(DIGEST)}', True),
        (f'"x,{DIGEST}"', False),
        (f'"{DIGEST}x"', False),
        (str(DIGEST), True),
        (f"x, {DIGEST}", True),
        (f"{DIGEST}x", False),
        (digest_etag(Digest("sha256", "b" * 64)), False),
        ('"*"', False),
        (f'"{DIGEST}', True),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, expected: bool) -> None:
    """Lists, weak tags, the star, and the bare digest of some clients."""
    assert expected == none_match(header, DIGEST)


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_the_comparison(header: str) -> None:
    """Appending the tag to a list that is closed makes any header match."""
    closed = header.replace('"', "")
    assert none_match(f"{closed}, {digest_etag(DIGEST)}", DIGEST)

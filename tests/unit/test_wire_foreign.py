"""What other registries say: challenges, links, errors, listings, ranges. Read, never trusted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ManifestInvalid
from sluice.oci.content import Descriptor, Referrer
from sluice.oci.digest import Digest
from sluice.wire.challenge import (
    CHALLENGE_LENGTH_MAX,
    Challenge,
    Scope,
    basic_challenge,
    bearer_challenge,
    parse_challenges,
)
from sluice.wire.link import next_link, parse_next_link
from sluice.wire.listing import parse_referrers, parse_tags, render_referrers, render_tags
from sluice.wire.problem import ForeignError, parse_errors
from sluice.wire.ranges import ServedRange, content_range, parse_served_range

printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
BASIC = Challenge("basic", {"realm": "simple"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([""], []),
        (["Basic"], [Challenge("basic")]),
        (["Negotiate, Basic realm=simple"], [Challenge("negotiate"), BASIC]),
        (["Negotiate YWJj==, Basic realm=simple"], [Challenge("negotiate", token="YWJj=="), BASIC]),
        (["Negotiate", 'BASIC REALM="simple"'], [Challenge("negotiate"), BASIC]),
        (
            ['Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"'],
            [Challenge("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}), BASIC],
        ),
        (
            ['Bearer realm="https://a.b/t?x=1,2",service="s p",scope="repository:a/b:pull,push repository:c:pull"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://a.b/t?x=1,2",
                        "service": "s p",
                        "scope": "repository:a/b:pull,push repository:c:pull",
                    },
                )
            ],
        ),
        ([', ,Basic realm = "simple" , ,'], [BASIC]),
        (['Basic realm="simple", realm="other"'], [BASIC]),
        (['realm="stray", Basic realm=simple'], [BASIC]),
        (['Bearer realm="cut'], [Challenge("bearer")]),
        (['"Basic realm=quoted"', "Basic realm=simple"], [BASIC]),
        (["=, \x00, Basic realm=simple"], [BASIC]),
        (["x" * CHALLENGE_LENGTH_MAX, "Basic realm=simple"], [Challenge("x" * CHALLENGE_LENGTH_MAX)]),
    ],
)
def test_challenges_are_read(values: list[str], expected: list[Challenge]) -> None:
    """Several in one header or in several; what cannot be read is left out."""
    assert tuple(expected) == parse_challenges(values)


@given(printable, printable, st.sampled_from(["pull", "push"]))
def test_our_own_challenges_come_back(realm: str, service: str, action: str) -> None:
    """Any printable realm and service, side by side in one header."""
    scope = Scope("repository", "team/app", frozenset({action}))
    header = f"{bearer_challenge(realm, service, [scope])}, {basic_challenge(realm)}"
    parameters = {"realm": realm, "service": service, "scope": f"repository:team/app:{action}"}
    expected = Challenge("bearer", {name: value for name, value in parameters.items() if value})
    assert (expected, Challenge("basic", {"realm": realm, "charset": "UTF-8"})) == parse_challenges([header])


@given(st.lists(st.text(st.sampled_from('aB=",\\ \t;:/1'), max_size=200) | st.text(), max_size=4))
def test_no_challenge_is_too_strange(values: list[str]) -> None:
    """Never raises, and what it finds has a scheme."""
    assert all(challenge.scheme for challenge in parse_challenges(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (['</v2/a/tags/list?n=2&last=b>; rel="next"'], "/v2/a/tags/list?n=2&last=b"),
        (["<https://h/x>; REL=Next"], "https://h/x"),
        (['<a>; rel="prev", <b>; title="x, y"; rel="next"'], "b"),
        (['<a>; rel="prev next"'], "a"),
        (['<a>; rel="prev"', "<b>;rel=next"], "b"),
        (['<a>; rel="nextish"'], None),
        (['<a>; title="rel=next"'], None),
        (["a; rel=next"], None),
        (["<a"], None),
    ],
)
def test_the_next_link_is_found(values: list[str], expected: str | None) -> None:
    """Among others, in any spelling of RFC 8288; the target is left as it is."""
    assert expected == parse_next_link(values)


@given(printable)
def test_our_own_link_comes_back(last: str) -> None:
    """Whatever stands in its parameters."""
    link = next_link("/v2/a/tags/list", {"last": last})
    assert link == f'<{parse_next_link([link])}>; rel="next"'


@given(st.lists(st.text(st.sampled_from('<>;"=, relnxt'), max_size=100), max_size=3))
def test_no_link_is_too_strange(values: list[str]) -> None:
    """Never raises."""
    parse_next_link(values)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"}]}', (ForeignError("DENIED", "no"),)),
        (b'{"errors":[{"code":"A"},{"message":"x"},{"code":1},7]}', (ForeignError("A", ""),)),
        (b'{"errors":[{"code":"A","message":"\\u001b[2J"}]}', (ForeignError("A", "?[2J"),)),
        (b'{"errors":{}}', ()),
        (b"[]", ()),
        (b"<html>", ()),
        (b"\xff", ()),
        (b"[" * 100_000, ()),
    ],
)
def test_foreign_errors_are_read(body: bytes, expected: tuple[ForeignError, ...]) -> None:
    """What is not the specification's JSON says nothing."""
    assert expected == parse_errors(body)


@given(st.lists(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,10}", fullmatch=True)))
def test_our_own_tags_come_back(tags: list[str]) -> None:
    """In their order."""
    assert tuple(tags) == parse_tags(render_tags("a", tags))


def test_tags_that_nobody_could_ask_for_are_left_out() -> None:
    """And null is an empty list."""
    assert ("v1",) == parse_tags(b'{"tags":["v1","../x",7,null,""]}')
    assert () == parse_tags(b'{"name":"a","tags":null}')


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"tags":7}', b'{"tags":{"a":1}}', b"[" * 100_000])
def test_what_is_no_list_of_tags_is_refused(body: bytes) -> None:
    """It is not taken for an empty one."""
    with pytest.raises(ManifestInvalid, match="list of tags"):
        parse_tags(body)


def test_our_own_referrers_come_back() -> None:
    """With their artifact types and annotations."""
    described = [Descriptor("application/x", Digest.of(bytes([number])), number) for number in range(3)]
    referrers = (Referrer(described[0], "a/b", {"k": "v"}), Referrer(described[1], None), Referrer(described[2], "c/d"))
    assert referrers == parse_referrers(render_referrers(referrers))


@pytest.mark.parametrize("change", [{"manifests": None}, {"manifests": [{}]}, {"schemaVersion": 1}, {"manifests": [7]}])
def test_what_is_no_index_is_refused(change: dict[str, object]) -> None:
    """It is not taken for an empty one."""
    with pytest.raises(ManifestInvalid):
        parse_referrers(json.dumps(json.loads(render_referrers([])) | change).encode())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("bytes 0-9/10", ServedRange(0, 9, 10)),
        ("Bytes 5-9/*", ServedRange(5, 9, None)),
        ("bytes */10", ServedRange(None, None, 10)),
        ("bytes 9-5/10", None),
        ("bytes 0-10/10", None),
        ("items 0-9/10", None),
        ("bytes 0-9", None),
        ("bytes -1-9/10", None),
    ],
)
def test_what_a_206_brings_is_read(header: str | None, expected: ServedRange | None) -> None:
    """What contradicts itself is nothing."""
    assert expected == parse_served_range(header)


@given(st.integers(0, 10**12), st.integers(1, 10**12), st.integers(0, 10**12))
def test_our_own_content_range_comes_back(start: int, length: int, rest: int) -> None:
    """As the bytes that it names."""
    size = start + length + rest
    assert ServedRange(start, start + length - 1, size) == parse_served_range(content_range(start, length, size))

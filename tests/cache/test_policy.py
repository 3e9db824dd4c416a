"""The decisions of a cache: the tables, and the rules that hold for all facts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.cache.policy import (
    BlobAction,
    BlobFacts,
    CachePolicy,
    Outcome,
    TagAction,
    TagFacts,
    Verdict,
    after_ask,
    decide_blob,
    decide_tag,
    fresh_for_s,
    is_far,
    needs_proof,
    stale_reason,
)

POLICY = CachePolicy(tag_fresh_s=60, tag_stale_max_s=1000, negative_s=10, far_range_bytes=100)
FIRST = replace(POLICY, revalidate="first")
DROP_GONE = replace(POLICY, keep_gone=False)
NOW = 5000.0
LOCAL, JOIN, START, BYPASS = BlobAction
SERVE, REVALIDATE, ASK = TagAction
FRESH, STALE, RAISE = Verdict
FOUND, GONE, FAILED = Outcome


@pytest.mark.parametrize(
    ("held", "entitled", "filling", "offset", "expected"),
    [
        (True, True, None, 0, LOCAL),
        (True, True, 5, 0, LOCAL),
        (True, True, None, 10**9, LOCAL),
        (True, False, None, 0, BYPASS),
        (True, False, 5, 0, BYPASS),
        (False, True, None, 0, START),
        (False, False, None, 0, START),
        (False, True, None, 100, START),
        (False, True, None, 101, BYPASS),
        (False, True, 0, 0, JOIN),
        (False, True, 0, 101, BYPASS),
        (False, True, 1, 101, JOIN),
        (False, True, 500, 0, JOIN),
        (False, False, 500, 0, BYPASS),
    ],
)
def test_where_a_blob_comes_from(
    held: bool, entitled: bool, filling: int | None, offset: int, expected: BlobAction
) -> None:
    """Each row of the table decides as it says."""
    assert expected == decide_blob(BlobFacts(held, entitled, filling, offset), POLICY)


FACTS = st.builds(
    BlobFacts,
    held=st.booleans(),
    entitled=st.booleans(),
    filling=st.none() | st.integers(0, 1000),
    offset=st.integers(0, 1000),
)


@given(FACTS)
def test_blob_rules(facts: BlobFacts) -> None:
    """What is held and allowed is local and nothing else is; nothing is shared without being allowed; only a reader far
    ahead, or one that may not share, goes past."""
    action = decide_blob(facts, POLICY)
    assert (action is LOCAL) == (facts.held and facts.entitled)
    if action is JOIN:
        assert facts.entitled
        assert facts.filling is not None
        assert not is_far(facts.offset, facts.filling, POLICY)
    if action is START:
        assert facts.filling is None or not facts.entitled
    if action is BYPASS:
        assert needs_proof(facts) or is_far(facts.offset, facts.filling or 0, POLICY)


def facts(age: float | None, failed: float | None = None, *, gone: bool = False, pinned: bool = False) -> TagFacts:
    """Facts by their age in seconds."""
    return TagFacts(
        None if age is None else NOW - age, gone, pinned, None if failed is None else NOW - failed, "timeout"
    )


@pytest.mark.parametrize(
    ("known", "policy", "expected"),
    [
        (None, POLICY, ASK),
        (facts(0), POLICY, SERVE),
        (facts(59), POLICY, SERVE),
        (facts(60), POLICY, REVALIDATE),
        (facts(999), POLICY, REVALIDATE),
        (facts(1000), POLICY, ASK),
        (facts(None), POLICY, ASK),
        (facts(-1), POLICY, ASK),
        (facts(59), FIRST, SERVE),
        (facts(60), FIRST, ASK),
        (facts(60, failed=9), POLICY, SERVE),
        (facts(60, failed=9), FIRST, SERVE),
        (facts(None, failed=9), POLICY, SERVE),
        (facts(60, failed=10), POLICY, REVALIDATE),
        (facts(5000, failed=9), POLICY, SERVE),
        (facts(5000, failed=10), POLICY, ASK),
        (facts(5000, pinned=True), FIRST, SERVE),
        (facts(None, pinned=True), POLICY, SERVE),
        (facts(5, gone=True), POLICY, SERVE),
        (facts(61, gone=True), POLICY, REVALIDATE),
        (facts(5, gone=True), DROP_GONE, ASK),
        (facts(5, gone=True, pinned=True), DROP_GONE, SERVE),
    ],
)
def test_what_becomes_of_a_tag(known: TagFacts | None, policy: CachePolicy, expected: TagAction) -> None:
    """Each row of the table decides as it says."""
    assert expected == decide_tag(known, NOW, policy)


@pytest.mark.parametrize(
    ("known", "outcome", "policy", "expected"),
    [
        (False, FOUND, POLICY, FRESH),
        (True, FOUND, POLICY, FRESH),
        (False, GONE, POLICY, RAISE),
        (True, GONE, POLICY, STALE),
        (True, GONE, DROP_GONE, RAISE),
        (False, FAILED, POLICY, RAISE),
        (True, FAILED, POLICY, STALE),
        (True, FAILED, DROP_GONE, STALE),
    ],
)
def test_what_is_done_after_asking(known: bool, outcome: Outcome, policy: CachePolicy, expected: Verdict) -> None:
    """Each row of the table decides as it says."""
    assert expected == after_ask(known, outcome, policy)


TAGS = st.builds(
    TagFacts,
    checked_at=st.none() | st.floats(0, 10_000),
    gone=st.booleans(),
    pinned=st.booleans(),
    failed_at=st.none() | st.floats(0, 10_000),
    trouble=st.none() | st.just("dns"),
)


@given(TAGS, st.floats(0, 10_000), st.sampled_from([POLICY, FIRST, DROP_GONE]))
def test_tag_rules(known: TagFacts, now: float, policy: CachePolicy) -> None:
    """A pinned tag is never asked about; what is repeatable is fresh by every other question too; a tag that is served
    without a reason for being stale is neither gone nor in trouble."""
    action = decide_tag(known, now, policy)
    if known.pinned:
        assert (SERVE, math.inf, None) == (action, fresh_for_s(known, now, policy), stale_reason(known))
        return
    repeatable_s = fresh_for_s(known, now, policy)
    assert 0 <= repeatable_s <= policy.tag_fresh_s
    if repeatable_s:
        assert action is SERVE
    if stale_reason(known) is None:
        assert not known.gone
    if action is REVALIDATE:
        assert policy.revalidate == "background"

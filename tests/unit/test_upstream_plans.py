"""The client's decisions: whether to try again, whether to ask at all, where to be sent, whose credentials."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamLoop,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTlsFailed,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from sluice.upstream.breaker import DELAY_MAX_S, DELAY_S, FAILURES_TO_OPEN, Breaker
from sluice.upstream.docker_config import Credentials, Entry, find_entry
from sluice.upstream.instance import RECEIVED_VIA, VIA_LENGTH_MAX, instance_id, is_own, via
from sluice.upstream.rate import RateLimit, parse_rate_limit
from sluice.upstream.redirect import is_internal
from sluice.upstream.retry import RETRY_AFTER_MAX_S, parse_retry_after, retry_delay
from sluice.upstream.settings import UpstreamLimits
from sluice.wire.address import parse_upstream

LIMITS = UpstreamLimits(tries=3, backoff_s=0.1, backoff_max_s=2.0)
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
USER = base64.b64encode(b"user:pass:word").decode()


@pytest.mark.parametrize(
    ("error", "retry_after_s", "attempt", "expected"),
    [
        (UpstreamUnreachable("x"), None, 1, 0.1),
        (UpstreamUnreachable("x"), None, 2, 0.2),
        (UpstreamUnreachable("x"), None, 3, None),
        (UpstreamFailed("x"), None, 1, 0.1),
        (UpstreamFailed("x"), 1, 1, 1.0),
        (UpstreamFailed("x"), 3, 1, None),
        (UpstreamRateLimited("x"), None, 1, None),
        (UpstreamRateLimited("x"), 0, 1, 0.0),
        (UpstreamRateLimited("x"), 2, 2, 2.0),
        (UpstreamRateLimited("x"), 2, 3, None),
        (UpstreamRateLimited("x"), 3, 1, None),
        (UpstreamTimeout("x"), None, 1, None),
        (UpstreamTlsFailed("x"), None, 1, None),
        (UpstreamUnauthorized("x"), None, 1, None),
        (UpstreamInvalid("x"), None, 1, None),
        (UpstreamLoop("x"), None, 1, None),
    ],
)
def test_when_to_try_again(
    error: UpstreamError, retry_after_s: int | None, attempt: int, expected: float | None
) -> None:
    """Only what may pass soon, and a rate limit only at its own word."""
    assert expected == retry_delay(error, retry_after_s, attempt, 1.0, LIMITS)


@given(st.integers(1, 50), st.floats(0, 1))
def test_the_wait_is_bounded_and_spread(attempt: int, fraction: float) -> None:
    """Between half and all of what it doubles to, and never more than the limit."""
    delay = retry_delay(UpstreamFailed("x"), None, attempt, fraction, UpstreamLimits(tries=100))
    assert delay is not None
    ceiling = min(0.1 * 2.0 ** (attempt - 1), 2.0)
    assert ceiling / 2 <= delay <= ceiling


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("\u0665", None),
        ("0", 0),
        (" 120 ", 120),
        ("9" * 30, RETRY_AFTER_MAX_S),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Fri, 01 Jan 2027 12:00:00 GMT", RETRY_AFTER_MAX_S),
        ("Thu, 01 Jan 99999 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_read(value: str | None, expected: int | None) -> None:
    """Seconds or a date; nonsense says nothing."""
    assert expected == parse_retry_after(value, NOW)


@given(st.text())
def test_no_retry_after_is_too_strange(value: str) -> None:
    """Never raises, never more than the limit."""
    assert 0 <= (parse_retry_after(value, NOW) or 0) <= RETRY_AFTER_MAX_S


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allow(now)
        breaker.failed(now)
    return breaker


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    """A success in between starts the count anew."""
    breaker = Breaker()
    for outcome in [breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed]:
        assert breaker.allow(0)
        outcome(0)
    assert [False] == [breaker.is_open]
    breaker.failed(0)
    assert [True] == [breaker.is_open]
    assert not breaker.allow(DELAY_S - 0.01)


def test_what_is_answered_with_5xx_counts_once() -> None:
    """The same thing again says nothing new; other things, or no answer at all, do. A success forgets them."""
    breaker = Breaker()
    for about in ["a", "a", "b", "b", "a"]:
        breaker.failed(0, about)
    assert not breaker.is_open
    breaker.succeeded(0)
    for about in ["a", "b", "a"]:
        breaker.failed(0, about)
    assert not breaker.is_open
    breaker.failed(0, None)
    assert breaker.is_open


def test_a_probe_that_is_answered_with_5xx_has_failed() -> None:
    """Also where it asks for what was asked for before."""
    breaker = Breaker()
    for about in "abc":
        breaker.failed(0, about)
    assert breaker.allow(DELAY_S)
    breaker.failed(DELAY_S, "a")
    assert [False, True] == [breaker.allow(2 * DELAY_S), breaker.allow(3 * DELAY_S)]


def test_one_probe_at_a_time_and_a_success_closes() -> None:
    """The second asker waits for what the first finds."""
    breaker = opened()
    assert [True, False] == [breaker.allow(DELAY_S), breaker.allow(DELAY_S)]
    breaker.succeeded(DELAY_S)
    assert [True, True] == [breaker.allow(DELAY_S), breaker.allow(DELAY_S)]


def test_failed_probes_come_less_and_less_often() -> None:
    """The delay doubles up to its limit."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(8):
        wait = 0.0
        while not breaker.allow(now + wait):
            wait += 0.5
        now += wait
        waits.append(wait)
        breaker.failed(now)
    assert [1.0, 2.0, 4.0, 8.0, 16.0, DELAY_MAX_S, DELAY_MAX_S, DELAY_MAX_S] == waits


def test_an_abandoned_probe_makes_room() -> None:
    """Nobody knows more than before, so the next may ask."""
    breaker = opened()
    assert breaker.allow(DELAY_S)
    breaker.abandoned()
    assert breaker.allow(DELAY_S)


@given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from(["failed", "succeeded", "abandoned"]))))
def test_a_breaker_never_shuts_for_good(steps: list[tuple[float, str]]) -> None:
    """Whatever happened, after its longest delay somebody is let through; and a success closes it."""
    breaker, now = Breaker(), 0.0
    for wait, outcome in steps:
        now += wait
        if breaker.allow(now):
            breaker.abandoned() if outcome == "abandoned" else getattr(breaker, outcome)(now)
    assert breaker.allow(now + DELAY_MAX_S)
    breaker.succeeded(now)
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("10.9.8.7", True),
        ("172.31.0.1", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::a00:1", True),
        ("2002:a00:1::", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("2606:4700::1111", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False),
    ],
)
def test_what_is_inside(address: str, expected: bool) -> None:
    """Also where an IPv6 address is only a wrapping of an IPv4 one."""
    assert expected == is_internal(address)


@pytest.mark.parametrize(
    ("document", "upstream", "expected"),
    [
        ({}, "r.io", Entry("r.io", None, None)),
        ({"auths": {"r.io": {"auth": USER}}}, "r.io", Entry("r.io", None, Credentials("user", "pass:word"))),
        ({"auths": {"other.io": {"auth": USER}}}, "r.io", Entry("r.io", None, None)),
        ({"auths": {"r.io": {"auth": USER}}}, "r.io:5000", Entry("r.io:5000", None, None)),
        (
            {"auths": {"https://r.io/v2/": {"username": "u", "password": "p"}}},
            "r.io",
            Entry("https://r.io/v2/", None, Credentials("u", "p")),
        ),
        (
            {"auths": {"r.io": {"auth": USER}, "r.io/team": {"username": "t", "password": "p"}}},
            "r.io/team/images",
            Entry("r.io/team", None, Credentials("t", "p")),
        ),
        (
            {"auths": {"https://index.docker.io/v1/": {"auth": USER}}},
            "registry-1.docker.io",
            Entry("https://index.docker.io/v1/", None, Credentials("user", "pass:word")),
        ),
        (
            {"auths": {"r.io": {"auth": USER, "identitytoken": "t"}}},
            "r.io",
            Entry("r.io", None, Credentials("user", "t", is_identity_token=True)),
        ),
        ({"auths": {"r.io": {}}}, "r.io", Entry("r.io", None, None)),
        ({"credsStore": "pass", "auths": {"r.io": {}}}, "r.io", Entry("r.io", "pass", None)),
        ({"credsStore": "pass", "credHelpers": {"r.io": "ecr-login"}}, "r.io", Entry("r.io", "ecr-login", None)),
        ({"credsStore": "pass"}, "docker.io", Entry("https://index.docker.io/v1/", "pass", None)),
    ],
)
def test_a_docker_config_is_looked_up(document: dict[str, object], upstream: str, expected: Entry) -> None:
    """The most special entry counts; Docker Hub goes by its old name."""
    assert expected == find_entry(json.dumps(document).encode(), parse_upstream(upstream))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"auths":[7]}', "auths that is no object"),
        ('{"auths":{"r.io":7}}', "entry for r.io that is no object"),
        ('{"auths":{"r.io":{"auth":7}}}', "members are no strings"),
        ('{"auths":{"r.io":{"auth":"!"}}}', "auth is not Base64"),
        ('{"auths":{"r.io":{"auth":"YWJj"}}}', "no colon"),
        ('{"credHelpers":{"r.io":"../evil"}}', "credential helper that is none"),
        ('{"credsStore":7}', "credential helper that is none"),
    ],
)
def test_a_docker_config_that_cannot_be_read_says_where(text: str, problem: str) -> None:
    """Without repeating what may be a secret."""
    with pytest.raises(ValueError, match=problem) as caught:
        find_entry(text.encode(), parse_upstream("r.io"))
    assert "YWJj" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "remaining", "expected"),
    [
        ("100;w=21600", "99;w=21600", RateLimit(100, 99, 21600)),
        ("100", "99", RateLimit(100, 99)),
        ("100;w=21600", None, None),
        ("many", "few", None),
        ("9" * 40, "1", RateLimit(10**12 - 1, 1)),
    ],
)
def test_a_quota_is_read(limit: str | None, remaining: str | None, expected: RateLimit | None) -> None:
    """Docker Hub's form and the plain one."""
    values = {"ratelimit-limit": limit, "ratelimit-remaining": remaining}
    assert expected == parse_rate_limit(lambda name: [value for value in [values.get(name)] if value is not None])


def test_we_know_ourselves() -> None:
    """Anywhere in a chain, and through what a request brought; a long chain is cut."""
    assert not is_own("1.1 sluice-0123456789abcdef, 1.1 varnish")
    assert is_own(f"1.1 varnish, 1.1 sluice-{instance_id()}")
    token = RECEIVED_VIA.set("x" * 10_000 + "\r\n\xe9")
    try:
        assert via().isprintable()
        assert via().isascii()
        assert VIA_LENGTH_MAX + 40 > len(via())
        assert is_own(via())
    finally:
        RECEIVED_VIA.reset(token)

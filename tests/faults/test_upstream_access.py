"""Upstreams that want to know who asks, that send us elsewhere, and that have had enough."""

from __future__ import annotations

import pytest

from faults.street import PASSWORD, USER, House, pulls
from sluice.testing.upstreams import (
    Fault,
    Kind,
    RateLimited,
    Redirect,
    Unauthorized,
    UpstreamServer,
    blobs,
    manifests,
    tokens,
)

US = {USER: PASSWORD}
SOMEBODY = {USER: "another password"}
LET_IN: dict[str, Unauthorized] = {
    "basic": Unauthorized(US, "basic"),
    "token by GET": Unauthorized(US),
    "token by POST": Unauthorized(US, methods=("POST",)),
    "token called access_token": Unauthorized(US, member="access_token"),
    "token without a lifetime": Unauthorized(US, declared_s=None),
    "token that ends sooner than it says": Unauthorized(US, lifetime_s=0.3),
}
SHUT_OUT: dict[str, Fault] = {
    "wrong password": Unauthorized(SOMEBODY),
    "wrong password, basic": Unauthorized(SOMEBODY, "basic"),
    "token in vain": Unauthorized(US, refused=frozenset({Kind.MANIFEST})),
    "403": Unauthorized(US, refused=frozenset({Kind.MANIFEST}), denied=True),
}


@pytest.mark.parametrize("case", LET_IN)
def test_our_credentials_are_used(house: House, case: str) -> None:
    """An image is pulled; the client needs to know nothing of it, and sends no credentials."""
    house.spoil(LET_IN[case])
    assert (200, house.layer) == (house.tag().status, house.blob().body)


@pytest.mark.parametrize("case", SHUT_OUT)
def test_a_refusal_is_no_business_of_the_clients(house: House, case: str) -> None:
    """502 with the reason: the client could do nothing with a 401, and a 404 would be untrue."""
    house.spoil(SHUT_OUT[case])
    seen = house.tag()
    assert (502, "UNAVAILABLE") == seen.verdict
    assert "answers 40" in seen.message
    assert "answers 40" in house.logged
    assert "www-authenticate" not in seen.headers
    assert PASSWORD not in house.sluice.log.read_text("utf-8", "replace")


def test_a_refusal_of_blobs_alone(house: House) -> None:
    """The manifest is there, the blob is 502."""
    house.spoil(Unauthorized(US, refused=frozenset({Kind.BLOB})))
    assert (200, (502, "UNAVAILABLE")) == (house.tag().status, house.blob().verdict)


def test_tokens_end_in_mid_use(house: House) -> None:
    """A token that is no longer good is replaced without the client noticing."""
    house.spoil(Unauthorized(US, generation=0))
    assert 200 == house.tag().status
    asked = len(house.upstream.seen(tokens))
    house.spoil(Unauthorized(US, generation=1))
    assert (200, house.layer) == (house.tag().status, house.blob().body)
    assert asked < len(house.upstream.seen(tokens))


def test_the_realm_moves(house: House) -> None:
    """Where tokens come from elsewhere from now on, or are wanted no more, pulls go on without a restart."""
    for name in ("second", "third"):
        house.upstream.content.push_image(f"team/{name}", "v1")
    with UpstreamServer(house.upstream.content, faults=[Unauthorized(US)]) as old:
        house.spoil(Unauthorized(US, realm=f"{old.address}/token"))
        assert 200 == house.tag().status
    house.spoil(Unauthorized(US, generation=1))
    assert 200 == pulls(house.sluice, f"{house.name}/team/second/manifests/v1").status
    house.spoil()
    assert 200 == pulls(house.sluice, f"{house.name}/team/third/manifests/v1").status


def test_credentials_do_not_follow_a_redirect(house: House) -> None:
    """Blobs come from another host, which sees no ``Authorization``."""
    with UpstreamServer(house.upstream.content, host="127.0.0.2") as storage:
        house.spoil(Unauthorized(US), Redirect(storage.address, query="X-Signature=abc"))
        assert house.layer == house.blob().body
        assert all("authorization" in one.headers for one in house.upstream.seen(blobs)[1:])
        assert [None] == [one.headers.get("authorization") for one in storage.seen(blobs)]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("ftp://127.0.0.1/blob", "only http and https"),
        ("http://user:secret@127.0.0.1/blob", "without a user"),
        ("http://127.0.0.1:1/blob", "cannot be reached"),
    ],
)
def test_redirects_that_lead_nowhere(house: House, to: str, words: str) -> None:
    """502 with the reason, and the secret in the address is not told."""
    house.spoil(Redirect(to, exact=True))
    seen = house.blob()
    assert (502, "UNAVAILABLE") == seen.verdict
    assert words in seen.message


@pytest.mark.parametrize("retry_after", [None, 17])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_too_many_requests(house: House, kind: str, retry_after: int | None) -> None:
    """503 with the upstream's ``Retry-After``, and the upstream is asked once and not again at once."""
    when = manifests if kind == "manifests" else blobs
    house.spoil(RateLimited(retry_after, when=when))
    seen = house.tag() if kind == "manifests" else house.blob()
    assert (503, "TOOMANYREQUESTS") == seen.verdict
    assert (None if retry_after is None else str(retry_after)) == seen.headers.get("retry-after")
    assert 1 == len(house.upstream.seen(when))


def test_a_short_wait_is_waited_for(house: House) -> None:
    """A ``Retry-After`` within the client's patience is kept to, and the client notices nothing."""
    house.spoil(RateLimited(1, times=1, when=blobs))
    assert house.layer == house.blob().body
    assert 2 == len(house.upstream.seen(blobs))

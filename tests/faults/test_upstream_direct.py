"""Direct mode before upstreams that misbehave: nothing is kept, and no wrong blob is passed on whole either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.street import REPOSITORY, House, check_whole, contents, wait_until
from sluice.oci.digest import Digest
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import (
    Cut,
    Failing,
    Fault,
    GeneratedBlob,
    Liar,
    RateLimited,
    Stall,
    Unauthorized,
    UpstreamContent,
    UpstreamServer,
    blobs,
)

PART = 300_000
HUGE_BYTES = 20 << 30
READ_BYTES = 64 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server in Direct mode before one upstream."""
    with UpstreamServer(UpstreamContent()) as upstream:
        flags = ("--mode", "direct", "--upstream", upstream.address, "--upstream-head-s", "1", "--upstream-idle-s", "1")
        directory: Path = tmp_path_factory.mktemp("direct")
        with SluiceServer(directory / "data", *flags, tls=False) as sluice:
            yield House(sluice, "", upstream)


@pytest.fixture
def house(site: House) -> Iterator[House]:
    """Its upstream behaves at first, and nothing is left of a test."""
    site.spoil()
    wait_until(lambda: site.tag().status == 200, "the circuit that the last test opened is closed")
    site.upstream.forget()
    yield site
    check_whole(site.sluice)
    assert {} == contents(site.sluice)


REFUSED: dict[str, tuple[Fault, int]] = {
    "hangs up": (Cut(before_head=True, times=2, when=blobs), 200),
    "5xx": (Failing(503, times=3, when=blobs), 502),
    "never answers": (Stall(when=blobs, times=1), 504),
    "a page with 200": (Liar("html", when=blobs), 502),
    "another digest in its header": (Liar("digest-header", when=blobs), 502),
    "429": (RateLimited(when=blobs), 503),
    "refuses us": (Unauthorized(users={}, when=blobs), 502),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_error_has_its_reason(house: House, case: str) -> None:
    """As in Proxy mode; a connection that fails before the head is tried again."""
    fault, status = REFUSED[case]
    house.spoil(fault)
    seen = house.blob()
    assert status == seen.status


@pytest.mark.parametrize(
    "fault",
    [Cut(PART, when=blobs), Liar("bytes", at=-1, when=blobs), Liar("long", when=blobs), Stall(PART, when=blobs)],
    ids=["cut", "wrong bytes", "too long", "stalls"],
)
def test_a_body_ends_short(house: House, fault: Fault) -> None:
    """The client asks for the rest itself, or has not got the whole of a wrong blob."""
    house.spoil(fault)
    seen = house.blob()
    assert (200, "short") == (seen.status, seen.ended)


def test_a_client_that_leaves(house: House) -> None:
    """The upstream's transfer ends with the client's."""
    digest = Digest("sha256", "6" * 64)
    house.upstream.content.hold_blob(REPOSITORY, GeneratedBlob(HUGE_BYTES, declared=digest))
    house.read_some(f"blobs/{digest}", READ_BYTES)
    house.upstream.wait_idle()
    assert [True] == [one.left_early for one in house.upstream.seen(blobs)]

"""The table "Upstream faults" of docs/operations.md, for a blob and a manifest that are not held yet.

What is held already is in ``test_upstream_stale``, who may ask in ``test_upstream_access``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.street import LAYER_BYTES, REPOSITORY, House, Street, check_whole, contents, street, wait_until
from sluice.oci.digest import Digest
from sluice.testing.upstreams import (
    Cut,
    Failing,
    Fault,
    GeneratedBlob,
    Liar,
    Redirect,
    SeenRequest,
    Slow,
    Stall,
    all_of,
    blobs,
    manifests,
)

PART = 300_000
SLOW_BYTES = 160_000
HUGE_BYTES = 20 << 30
READ_BYTES = 300 << 20
GROWTH_BYTES_MAX = 64 << 20


def resumed(request: SeenRequest) -> bool:
    """Whether it asks for the rest of a blob."""
    return blobs(request) and "range" in request.headers


RECOVERING: dict[str, tuple[list[Fault], int]] = {
    "cut once": ([Cut(PART, times=1, when=blobs)], 2),
    "cut by a reset": ([Cut(PART, times=1, rst=True, when=blobs)], 2),
    "cut three times": ([Cut(100_000, times=3, when=blobs)], 4),
    "cut before the head": ([Cut(before_head=True, times=1, when=blobs)], 2),
    "cut, and ranges are not known": ([Cut(PART, times=1, when=blobs), Liar("no-range", when=blobs)], 2),
    "stalled once": ([Stall(PART, times=1, when=blobs)], 2),
    "503 twice": ([Failing(503, times=2, when=blobs)], 3),
    "slow": ([Slow(2_000_000, when=blobs)], 1),
    "of the wrong type": ([Liar("wrong-content-type", when=blobs)], 1),
    "of unknown length": ([Liar("chunked-no-length", when=blobs)], 1),
    "ended by the connection's end": ([Liar("until-close", when=blobs)], 1),
}


@pytest.mark.parametrize("case", RECOVERING)
def test_what_a_client_does_not_notice(house: House, case: str) -> None:
    """The blob comes whole and is kept; how many requests that took."""
    faults, requests = RECOVERING[case]
    house.spoil(*faults)
    seen = house.blob()
    assert (200, "whole", house.layer) == (seen.status, seen.ended, seen.body)
    assert requests == house.upstream.gets(house.digest)
    wait_until(lambda: house.blob().origin == "hit", "the blob is kept")
    assert requests == house.upstream.gets(house.digest)


REFUSED: dict[str, tuple[list[Fault], tuple[int, str], str]] = {
    "cut at once, always": ([Cut(0, when=blobs)], (502, "UNAVAILABLE"), "broke off in the middle of a body"),
    "cut before the head, always": ([Cut(before_head=True, when=blobs)], (502, "UNAVAILABLE"), "cannot be reached"),
    "never answers": ([Stall(when=blobs)], (504, "UNAVAILABLE"), "did not answer within 1 s"),
    "another digest in its header": ([Liar("digest-header", when=blobs)], (502, "UNAVAILABLE"), "and answers with"),
    "a page with 200": ([Liar("html", when=blobs)], (502, "UNAVAILABLE"), "sent other bytes than those"),
    "500": ([Failing(500, when=blobs)], (502, "UNAVAILABLE"), "answers 500"),
    "503": ([Failing(503, when=blobs)], (502, "UNAVAILABLE"), "answers 503"),
    "redirects in a circle": ([Redirect()], (502, "UNAVAILABLE"), "redirects in a circle"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_client_is_told_of(house: House, case: str) -> None:
    """An error with the reason before anything else, never a 404; the log has it; nothing is kept."""
    faults, verdict, reason = REFUSED[case]
    house.spoil(*faults)
    seen = house.blob()
    assert verdict == seen.verdict
    assert reason in seen.message
    assert reason in house.logged
    assert not house.held
    house.spoil()
    wait_until(lambda: house.blob().body == house.layer, "the upstream is asked again")


def test_one_blob_in_ruins_is_not_the_end(town: Street, house: House) -> None:
    """However often one blob is tried in vain, the upstream is asked for everything else."""
    house.spoil(Failing(500, when=blobs))
    assert [502] * 4 == [house.blob().status for _ in range(4)]
    assert f'sluice_upstream_broken{{registry="{house.name}"}} 0' in town.sluice.operations("/metrics")[1]
    assert (200, str(house.image)) == (house.tag().status, house.tag().headers["docker-content-digest"])


BROKEN: dict[str, list[Fault]] = {
    "cut, and never resumes": [Cut(PART, times=1, when=blobs), Failing(503, when=resumed)],
    "cut, and resumes elsewhere": [Cut(PART, times=1, when=blobs), Liar("wrong-range", when=resumed)],
    "wrong at the beginning": [Liar("bytes", when=blobs)],
    "wrong at the end": [Liar("bytes", at=-1, when=blobs)],
    "one byte short": [Liar("short", when=blobs)],
    "one byte long": [Liar("long", when=blobs)],
    "wrong and of unknown length": [Liar("bytes", when=blobs), Liar("chunked-no-length", when=blobs)],
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_ends_short(town: Street, house: House, case: str) -> None:
    """After a head that was true the body ends before its end, so that no client takes it for whole."""
    failed = town.metric("sluice_cache_fills_failed_total")
    house.spoil(*BROKEN[case])
    seen = house.blob()
    assert (200, "short") == (seen.status, seen.ended)
    assert len(seen.body) < LAYER_BYTES
    assert not house.held
    assert "ended short" in house.logged
    assert failed < town.metric("sluice_cache_fills_failed_total")
    house.spoil()
    wait_until(lambda: house.blob().body == house.layer, "the upstream is asked again")


@pytest.mark.parametrize("kind", ["bytes", "short", "long"])
def test_a_small_blob_is_verified_before_its_head(house: House, kind: str) -> None:
    """So a lie about it is an error with a reason, not a body that ends short."""
    digest = house.upstream.content.hold_blob(REPOSITORY, house.name.encode())
    house.spoil(Liar(kind, when=blobs))
    assert (502, "UNAVAILABLE") == house.get(f"blobs/{digest}").verdict


UNTRUE: dict[str, tuple[list[Fault], tuple[int, str | None]]] = {
    "cut": ([Cut(10, when=manifests)], (502, "UNAVAILABLE")),
    "cut before the head": ([Cut(before_head=True, when=manifests)], (502, "UNAVAILABLE")),
    "never answers": ([Stall(when=manifests)], (504, "UNAVAILABLE")),
    "stops in the body": ([Stall(10, when=manifests)], (504, "UNAVAILABLE")),
    "other bytes": ([Liar("bytes", when=manifests)], (502, "UNAVAILABLE")),
    "one byte short": ([Liar("short", when=manifests)], (502, "UNAVAILABLE")),
    "one byte long": ([Liar("long", when=manifests)], (502, "UNAVAILABLE")),
    "another digest in its header": ([Liar("digest-header", when=manifests)], (502, "UNAVAILABLE")),
    "a page with 200": ([Liar("html", when=manifests)], (502, "UNAVAILABLE")),
    "redirects in a circle": ([Redirect(when=manifests)], (502, "UNAVAILABLE")),
    "of the wrong type": ([Liar("wrong-content-type", when=manifests)], (200, None)),
    "of unknown length": ([Liar("chunked-no-length", when=manifests)], (200, None)),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_a_manifest_is_true_or_an_error(house: House, case: str) -> None:
    """A manifest by tag is what the upstream holds, or an error with its reason, which is forgotten when it is over."""
    faults, verdict = UNTRUE[case]
    house.spoil(*faults)
    seen = house.tag()
    assert verdict == seen.verdict
    assert seen.status != 200 or str(house.image) == str(Digest.of(seen.body))
    house.spoil()
    wait_until(lambda: str(Digest.of(house.tag().body)) == str(house.image), "the upstream is asked again")


def test_a_stalled_body_goes_on(house: House) -> None:
    """A body that stands still is given up and asked for again from there; who reads has lost nothing."""
    house.spoil(Stall(PART, when=all_of(blobs, lambda request: not resumed(request))))
    seen = house.blob()
    assert (200, "whole", house.layer) == (seen.status, seen.ended, seen.body)
    first, second = (one.headers.get("range", "") for one in house.upstream.seen(blobs))
    assert "" == first
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= PART


def test_a_body_that_is_cut_again_and_again_arrives(house: House) -> None:
    """As long as every connection brings something, the blob comes on."""
    house.spoil(Cut(PART, when=blobs))
    seen = house.blob()
    assert (200, "whole", house.layer) == (seen.status, seen.ended, seen.body)


def test_a_slow_body_is_passed_on_as_it_comes(house: House) -> None:
    """At 50 KB/s a client has the first bytes while the upstream still sends the rest, and in the end all of them."""
    data = house.layer[:SLOW_BYTES]
    digest = house.upstream.content.hold_blob(REPOSITORY, data)
    house.spoil(Slow(50_000, when=blobs))
    house.read_some(f"blobs/{digest}", 1)
    (request,) = house.upstream.seen(blobs)
    assert (200, False) == (request.status, request.bytes_sent == SLOW_BYTES)
    seen = house.get(f"blobs/{digest}")
    assert ("joined", "whole", data) == (seen.origin, seen.ended, seen.body)
    assert 1 == house.upstream.gets(digest)


def test_a_huge_blob_streams(town: Street, house: House) -> None:
    """Of 20 GiB, hundreds of MiB pass without memory that grows; when the client leaves and the upstream breaks off,
    nothing of it is left."""
    digest = Digest("sha256", "5" * 64)
    house.upstream.content.hold_blob(REPOSITORY, GeneratedBlob(HUGE_BYTES, declared=digest))
    before = town.sluice.resident_bytes()
    house.read_some(f"blobs/{digest}", READ_BYTES)
    assert town.sluice.resident_bytes() - before < GROWTH_BYTES_MAX
    house.spoil(Failing(503))
    house.upstream.stop()
    wait_until(lambda: town.metric("sluice_cache_fills_active") == 0, "the fill gives up")


def test_a_blob_beyond_the_budget_streams(tmp_path: Path) -> None:
    """It goes past the cache, which says so; nothing of it is kept, and the upstream's transfer ends with the client's.
    What fits is kept as ever."""
    with street(tmp_path, 1, "--cache-max-bytes", "64MiB") as town:
        house = town.house()
        digest = Digest("sha256", "7" * 64)
        house.upstream.content.hold_blob(REPOSITORY, GeneratedBlob(HUGE_BYTES, declared=digest))
        unkept = town.metric("sluice_cache_unkept_total")
        house.read_some(f"blobs/{digest}", READ_BYTES)
        assert unkept < town.metric("sluice_cache_unkept_total")
        house.upstream.wait_idle()
        check_whole(town.sluice)
        assert {} == contents(town.sluice)
        assert house.layer == house.blob().body
        wait_until(lambda: house.held, "the layer is kept")

"""Many blobs at once, of a slow registry and of a healthy one, through few slots."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faults.street import REPOSITORY, House, Street, check_whole, street
from sluice.oci.digest import Digest
from sluice.testing.upstreams import Slow, blobs

FILLS = 4
BLOB_BYTES = 400_000
SLOW = Slow(60_000, when=blobs)  # a blob takes over six seconds
SOON_S = 4.0
QUEUED = 'bypass; reason="queue"'


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Street]:
    """A server of the test's own, with few slots, before three upstreams."""
    with street(tmp_path, 3, "--cache-fills", str(FILLS), "--limits-drain-s", "1") as one:
        yield one
        check_whole(one.sluice)
        assert "Traceback" not in one.sluice.log.read_text("utf-8", "replace")


def hold(house: House, number: int) -> list[Digest]:
    """So many blobs of the upstream's."""
    data = random.Random(house.name).randbytes(BLOB_BYTES + number)
    return [house.upstream.content.hold_blob(REPOSITORY, data[one:]) for one in range(number)]


def test_a_slow_registry_starves_no_other(made: Street) -> None:
    """With as many slow blobs as there are slots on their way, and all who asked for them gone, another registry's
    blob comes at once, begun for who asked."""
    slow, healthy = made.house("u0.test"), made.house("u1.test")
    slow.spoil(SLOW)
    for digest in hold(slow, FILLS):
        slow.read_some(f"blobs/{digest}", 10_000)
    began = time.monotonic()
    seen = healthy.blob()
    assert (200, "started", healthy.layer) == (seen.status, seen.origin, seen.body)
    assert time.monotonic() - began < SOON_S


def test_a_queue_fails_nobody(made: Street) -> None:
    """Twice as many slow blobs of one registry as there are slots all begin within seconds and come whole: those that
    would have to wait come straight from the upstream, and say and count it."""
    house = made.house("u2.test")
    house.spoil(SLOW)
    digests = hold(house, 2 * FILLS)
    with ThreadPoolExecutor(len(digests)) as pool:
        answers = list(pool.map(lambda digest: house.get(f"blobs/{digest}"), digests))
    assert [(200, "whole", digest) for digest in digests] == [
        (one.status, one.ended, Digest.of(one.body)) for one in answers
    ]
    assert ["started"] * FILLS + [QUEUED] * FILLS == sorted((str(one.origin) for one in answers), reverse=True)
    assert f'sluice_cache_bypass_total{{reason="queue"}} {FILLS}' in made.sluice.operations("/metrics")[1]

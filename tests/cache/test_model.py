"""Readers of any kind, an upstream with any faults: what a reader gets is the content, or it ends short with an error.

The model is the content itself. Hypothesis draws the blob's size, what each opening of it does wrong, and when each
reader comes, where it begins, how much it takes at a time and when it leaves.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.scripted import APP, POLICY, Body, Cache, caching
from sluice.cache.chunks import CHUNK_BYTES_MAX
from sluice.cache.fill import WITHHELD_BYTES
from sluice.errors import SluiceError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from sluice.oci.digest import Digest

SIZES = st.one_of(
    st.sampled_from([0, 1, WITHHELD_BYTES - 1, WITHHELD_BYTES, WITHHELD_BYTES + 1, POLICY.small_blob_bytes + 1]),
    st.integers(0, 3 * CHUNK_BYTES_MAX),
)
WHOLE = 1_000_000  # slices: more than any blob has
OFFSETS = st.integers(0, 3 * CHUNK_BYTES_MAX)
POLICIES = st.builds(
    lambda far, small, tries: replace(POLICY, far_range_bytes=far, small_blob_bytes=small, fill_tries=tries),
    far=st.sampled_from([10_000, 300_000, POLICY.far_range_bytes]),
    small=st.sampled_from([0, POLICY.small_blob_bytes]),
    tries=st.integers(1, 5),
)


@dataclass(frozen=True)
class Visit:
    """A reader: comes after ``delay`` turns, begins at ``offset``, takes ``slice_bytes`` at a time, leaves after
    ``patience`` of them."""

    delay: int
    offset: int
    slice_bytes: int
    patience: int


BODIES = st.builds(
    Body,
    refuse=st.sampled_from([None, None, None, UpstreamTimeout("silent")]),
    cut_at=st.none() | OFFSETS,
    flip_at=st.none() | st.none() | OFFSETS,
    end_at=st.none() | st.none() | OFFSETS,
    sized=st.booleans(),
)
VISITS = st.builds(
    Visit,
    delay=st.integers(0, 30),
    offset=OFFSETS,
    slice_bytes=st.sampled_from([1000, 32_768, 131_072, 400_000]),
    patience=st.sampled_from([0, 1, 3, WHOLE, WHOLE, WHOLE]),
)


async def visit(cache: Cache, digest: Digest, data: bytes, one: Visit, *, lies: bool = False) -> bool:
    """Read as the visit says; whether it came to the end. Where an upstream ``lies`` a reader may have wrong bytes, and
    then comes to no end, but for one who wanted a part far ahead."""
    for _ in range(one.delay):
        await asyncio.sleep(0.0002)
    position = min(one.offset, len(data))
    try:
        reader = await cache.pull.open_blob(APP, digest, position)
    except UpstreamError:
        return False
    right = True
    try:
        assert reader.size in {None, len(data)}
        for _ in range(one.patience):
            want = one.slice_bytes if reader.size is None else min(one.slice_bytes, reader.size - position)
            got = await reader.read(position, want)
            right = right and data[position : position + want] == got
            assert right or lies
            position += len(got)
            if position == reader.size or not got:
                assert right or one.offset > cache.pull.policy.far_range_bytes
                return True
    except UpstreamError:
        return False
    finally:
        reader.close()
    return False


async def story(data: bytes, script: list[Body], visits: list[Visit], cache: Cache) -> None:
    bodies = [
        replace(
            body,
            flip_at=None if body.flip_at is None or body.flip_at >= len(data) else body.flip_at,
            end_at=None if body.end_at is None or body.end_at >= len(data) else body.end_at,
        )
        for body in script
    ]
    digest = cache.upstream.add_blob(data, *bodies, Body())
    faults = [body for body in bodies if (body.refuse, body.cut_at, body.flip_at, body.end_at) != (None,) * 4]
    lies = any((body.flip_at, body.end_at) != (None, None) for body in bodies)
    ended = await asyncio.gather(*(visit(cache, digest, data, one, lies=lies) for one in visits))
    await cache.idle()
    if not faults:
        assert [one.patience == WHOLE or done for one, done in zip(visits, ended, strict=True)] == ended
        assert cache.counters.fills_begun == cache.counters.fills_done == 1
    if digest.hex in cache.contents():
        assert await visit(cache, digest, data, Visit(0, 0, 400_000, WHOLE))
    # Whatever happened, an upstream that is well again serves everybody.
    cache.upstream.scripts[digest] = [Body()]
    cache.clock.now += POLICY.negative_s
    assert await visit(cache, digest, data, Visit(0, 0, 400_000, WHOLE))


def run(size: int, script: list[Body], visits: list[Visit], policy: object) -> None:
    data = random.Random(size).randbytes(size)

    async def whole() -> None:
        with TemporaryDirectory() as directory:
            async with caching(Path(directory) / "data", policy) as cache:  # type: ignore[arg-type]
                await story(data, script, visits, cache)

    asyncio.run(whole())


ARGUMENTS = (SIZES, st.lists(BODIES, max_size=4), st.lists(VISITS, min_size=1, max_size=6), POLICIES)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(*ARGUMENTS)
def test_every_byte_is_the_content(size: int, script: list[Body], visits: list[Visit], policy: object) -> None:
    """Whatever the upstream does wrong, a reader gets the content's bytes and then its end or an error; nothing wrong
    is kept and nothing is left over; a well upstream is then pulled from as if nothing had been."""
    run(size, script, visits, policy)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=500, deadline=None, suppress_health_check=SLOW)
@given(*ARGUMENTS)
def test_every_byte_is_the_content_at_length(
    size: int, script: list[Body], visits: list[Visit], policy: object
) -> None:
    """The same, many more times."""
    run(size, script, visits, policy)


def test_the_errors_that_end_a_reader_are_told_apart() -> None:
    """A reader that ends short ends with an UpstreamError, which is what the model lets pass."""
    assert issubclass(UpstreamInvalid, UpstreamError)
    assert not issubclass(SluiceError, UpstreamError)

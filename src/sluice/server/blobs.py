"""Blobs: GET with ranges, HEAD, DELETE (spec: "Pulling blobs").

The bytes are read in slices and handed to the server library, which waits while the reader is slow. How large a slice
is depends on how many streams run: ``limits.streams_bytes`` is what all of them together may hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from sluice.errors import BlobUnknown, SluiceError
from sluice.oci.content import BlobReader
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.server.access import Action
from sluice.server.exchange import ClientGone, Exchange, Headers
from sluice.server.registry import Registry
from sluice.wire.etag import digest_etag, none_match
from sluice.wire.ranges import ByteRange, content_range, parse_range, resolve

log = logging.getLogger("sluice.server")

SLICE_BYTES_MAX = 512 * 1024
SLICE_BYTES_MIN = 16 * 1024
SLICES_TO_GROW = 8
IDLE_STEPS = 16  # limits.response_idle_s is kept to a sixteenth
SLICES_IN_FLIGHT = 6  # four in the server library's queue, one being sent, one being read
OCTETS = (b"content-type", b"application/octet-stream")


class Streams:
    """The responses being streamed now, sharing one budget of memory."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.active = 0

    def slice_bytes(self, sent: int = 0) -> int:
        """How much a stream that has sent ``sent`` bytes may read at a time: a power of two.

        It starts small and grows with what was taken, so that many readers who arrive together and stop cost little.
        """
        share = self.budget_bytes // (max(self.active, 1) * SLICES_IN_FLIGHT)
        allowed = max(min(share, sent // SLICES_TO_GROW), 1)
        return max(SLICE_BYTES_MIN, min(SLICE_BYTES_MAX, 1 << (allowed.bit_length() - 1)))


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of a blob that an answer carries: from ``start`` to before ``end``, None for an unknown end."""

    start: int
    end: int | None

    def next_length(self, position: int, slice_bytes: int) -> int:
        """How much to read at ``position``."""
        return slice_bytes if self.end is None else min(slice_bytes, self.end - position)

    def ends(self, position: int, data: bytes) -> bool:
        """Whether ``data``, after which the reader stands at ``position``, was the last slice. A blob of unknown size
        ends where nothing more came."""
        return position >= self.end if self.end is not None else not data


def _target(x: Exchange) -> tuple[Repository, Digest]:
    assert x.route.repository is not None
    assert isinstance(x.route.reference, Digest)
    return x.route.repository, x.route.reference


async def head(_: Registry, x: Exchange) -> None:
    """HEAD. From somebody who may push it counts as use, so that GC leaves the blob to the manifest to come."""
    repository, digest = _target(x)
    sink = x.wiring.sink
    if sink is not None and x.principal.allows(Action.PUSH, repository) and not sink.touch(repository, digest):
        raise BlobUnknown(f"blob {digest} is unknown in {repository}")
    fetched = await x.wiring.fetcher.stat_blob(repository, digest)
    x.marks = x.wiring.marked(fetched.provenance)
    headers = _headers(digest, fetched.value)
    if none_match(x.text_header(b"if-none-match"), digest):
        await x.respond_unmodified(headers)
        return
    await x.start(200, headers)
    await x.send(b"", more=False)


def _headers(digest: Digest, size: int | None) -> Headers:
    return [
        OCTETS,
        *([] if size is None else [(b"content-length", b"%d" % size)]),
        (b"accept-ranges", b"bytes"),
        (b"docker-content-digest", str(digest).encode()),
        (b"etag", digest_etag(digest).encode()),
    ]


async def get(registry: Registry, x: Exchange, streams: Streams, sever: Callable[[Exchange], None]) -> None:
    """GET whole or a range (RFC 9110 section 14). ``sever`` cuts a reader that took nothing for too long."""
    repository, digest = _target(x)
    if none_match(x.text_header(b"if-none-match"), digest):
        x.marks = x.wiring.marked((await x.wiring.fetcher.stat_blob(repository, digest)).provenance)
        await x.respond_unmodified(_headers(digest, 0))
        return
    wanted = _wanted_range(x, digest)
    fetched = await x.wiring.fetcher.fetch_blob(repository, digest, _offset(wanted))
    reader = fetched.value
    try:
        x.marks = x.wiring.marked(fetched.provenance)
        status, headers, span = _partition(wanted, digest, reader.size)
        first = await reader.read(span.start, span.next_length(span.start, streams.slice_bytes()))
        await x.start(status, headers)
        await _stream(x, reader, first, span, (streams, sever, registry.limits.response_idle_s))
    finally:
        reader.close()


def _offset(wanted: ByteRange | None) -> int:
    """Where the reader begins; below 0 it counts from the end, for only the size tells where that is."""
    if wanted is None:
        return 0
    return -(wanted.last or 0) if wanted.first is None else wanted.first


def _partition(wanted: ByteRange | None, digest: Digest, size: int | None) -> tuple[int, Headers, Span]:
    """Status, headers and stretch of the answer. Where the size is unknown, a range is answered with the whole
    (RFC 9110 section 14.2: a server may ignore it)."""
    if wanted is None or size is None:
        return 200, _headers(digest, size), Span(0, size)
    start, length = resolve(wanted, size)
    headers = [*_headers(digest, length), (b"content-range", content_range(start, length, size).encode())]
    return 206, headers, Span(start, start + length)


def _wanted_range(x: Exchange, digest: Digest) -> ByteRange | None:
    """None for the whole, also where ``If-Range`` names other content (RFC 9110 section 13.1.5)."""
    condition = x.text_header(b"if-range")
    if condition is not None and condition != digest_etag(digest):
        return None
    return parse_range(x.text_header(b"range"))


async def _stream(
    x: Exchange,
    reader: BlobReader,
    data: bytes,
    span: Span,
    bounds: tuple[Streams, Callable[[Exchange], None], float],
) -> None:
    """Send ``span`` of the blob, of which ``data`` is the first slice."""
    streams, sever, idle_s = bounds
    position = span.start + len(data)
    if span.ends(position, data):
        await x.send(data, more=False)
        return
    streams.active += 1
    gone = asyncio.ensure_future(x.gone())
    try:
        async with asyncio.timeout(idle_s) as deadline:
            clock = asyncio.get_running_loop().time
            moved = clock()
            while not span.ends(position, data) and not gone.done():
                await x.send(data, more=True)
                now = clock()
                if now - moved > idle_s / IDLE_STEPS:  # a timer for each slice would cost as much as reading it
                    deadline.reschedule(now + idle_s)
                    moved = now
                slice_bytes = streams.slice_bytes(position - span.start)
                data = await reader.read(position, span.next_length(position, slice_bytes))
                position += len(data)
            if gone.done():
                raise ClientGone
            await x.send(data, more=False)
    except TimeoutError:
        sever(x)
        raise ClientGone from None
    except SluiceError as error:
        log.error("blob %s ended short: %s", x.route.reference, error.message)
        raise
    finally:
        streams.active -= 1
        gone.cancel()


async def delete(_: Registry, x: Exchange) -> None:
    """DELETE: the repository can no longer read it; the bytes go by GC."""
    repository, digest = _target(x)
    await x.sink.delete_blob(repository, digest)
    await x.respond(202, [])

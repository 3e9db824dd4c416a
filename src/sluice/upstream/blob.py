"""A blob on its way from an upstream: a ``BlobReader`` over one response, opened again where reading jumps.

It checks lengths, not the digest: the fill does that, and goes on after a drop, since it knows what it has already.
Whoever reads slowly slows the upstream down: no more is taken from it than is asked for, but for one chunk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sluice.errors import BlobUnknown, UpstreamFailed, UpstreamInvalid
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.upstream.endpoint import Endpoint
from sluice.upstream.exchange import Request, Response
from sluice.upstream.manifests import check_digest_header, pull_scope
from sluice.wire.pieces import Pieces
from sluice.wire.ranges import parse_served_range

SKIP_BYTES = 256 << 10
"""A gap up to here is read over rather than asked for anew."""
PIECE_BYTES = 1 << 20

_HANDLED = frozenset({404, 416})


@dataclass(frozen=True, slots=True)
class Opened:
    """A response that stands at ``position``. It ends before ``end`` where that is known; None means that there is
    nothing after ``position``. ``size`` is the whole blob's."""

    response: Response | None
    position: int
    end: int | None
    size: int | None


Open = Callable[[int], Awaitable[Opened]]


async def open_at(endpoint: Endpoint, repository: Repository, digest: Digest, offset: int) -> Opened:
    """Ask one address for a blob from ``offset``; raises BlobUnknown or an UpstreamError."""
    name = endpoint.address.repository(repository)
    target = endpoint.transport.target(f"/v2/{name}/blobs/{digest}")
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    request = Request("GET", target, headers, small=False)
    response = await endpoint.send(request, pull_scope(name), _HANDLED)
    if response.status == 404:
        await response.discard()
        raise BlobUnknown(f"blob {digest} is unknown in {name} of the upstream {endpoint.address}")
    try:
        check_digest_header(response, digest)
        return await _opened(response, offset)
    except BaseException:
        response.close()
        raise


async def _opened(response: Response, offset: int) -> Opened:
    shown = response.target.shown
    served = parse_served_range(response.header("content-range"))
    if response.status == 416:
        await response.discard()
        if served is None or served.size != offset:
            raise UpstreamInvalid(f"{shown} has nothing from byte {offset} on, and does not end there")
        return Opened(None, offset, offset, offset)
    if response.status == 206:
        if served is None or served.first != offset or served.last is None or not offset:
            raise UpstreamInvalid(f"{shown} answers with another range than asked for: from byte {offset}")
        return Opened(response, offset, served.last + 1, served.size)
    if response.length is not None and response.length < offset:
        raise UpstreamInvalid(f"{shown} has {response.length} bytes, and is asked for those from {offset} on")
    await _skip(response, offset)
    return Opened(response, offset, response.length, response.length)


async def _skip(response: Response, count: int) -> None:
    """A 200 to a ranged request: the upstream knows no ranges."""
    while count:
        piece = await response.read(min(count, PIECE_BYTES))
        if not piece:
            raise UpstreamInvalid(f"{response.target.shown} ends {count} bytes before the place where reading begins")
        count -= len(piece)


class RemoteBlob:
    """Reads follow each other; two at a time are the caller's to forbid. After an error, what had come until then is
    kept for ``read_next``."""

    def __init__(self, opened: Opened, reopen: Open) -> None:
        self._opened: Opened | None = opened
        self._reopen = reopen
        self._position = opened.position
        self._held = Pieces()
        self._closed = False
        self._size = opened.size

    @property
    def size(self) -> int | None:
        """Whole length in bytes; None where the upstream does not tell."""
        return self._size

    @property
    def position(self) -> int:
        """Where ``read_next`` goes on."""
        return self._position

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, fewer only at the end of a blob of unknown size.

        Raises UpstreamFailed where the body is short or breaks off, UpstreamInvalid where it is too long.
        """
        if length <= 0:
            return b""
        if self._size is not None and offset + length > self._size:
            raise UpstreamFailed(f"the blob has {self._size} bytes, {length} were asked for from {offset}")
        await self._move(offset)
        while len(self._held) < length and await self._hold():
            pass
        return self._take(length)

    async def read_next(self, limit: int) -> bytes:
        """The next bytes as they come, up to ``limit``; empty at the end."""
        if not self._held:
            await self._hold()
        return self._take(limit)

    def close(self) -> None:
        """End the transfer; idempotent."""
        self._closed = True
        self._held.clear()
        self._drop_response()

    async def _move(self, offset: int) -> None:
        gap = offset - self._position
        while 0 < gap <= SKIP_BYTES and (self._held or await self._hold()):
            gap -= len(self._take(gap))
        if gap:
            self._drop_response()
            self._held.clear()
            self._position = offset
            self._opened = await self._again(offset)

    async def _hold(self) -> bool:
        """Take one piece more; False at the end."""
        arrived = self._position + len(self._held)
        if self._opened is None:
            self._opened = await self._again(arrived)
        opened = self._opened
        end = self._size if opened.end is None else opened.end
        piece = b"" if opened.response is None else await self._piece(opened.response)
        arrived += len(piece)
        if end is not None and arrived > end:
            raise self._too_long(end)
        if piece:
            self._held.append(piece)
            # The last bytes are not handed out before it is sure that they are the last.
            if arrived == end and opened.response is not None and await self._piece(opened.response):
                raise self._too_long(end)
            return True
        if end is not None and arrived < end:
            self._drop_response()
            raise UpstreamFailed(f"the body ends after {arrived} of {end} bytes")
        if self._size is None or arrived == self._size:
            return False
        self._opened = await self._again(arrived)  # it sent less than asked for, and said so
        return await self._hold()

    async def _piece(self, response: Response) -> bytes:
        try:
            return await response.read(PIECE_BYTES)
        except BaseException:
            self._drop_response()
            raise

    async def _again(self, offset: int) -> Opened:
        if self._closed:
            raise UpstreamFailed("the blob has been closed")
        opened = await self._reopen(offset)
        if self._closed or (self._size is not None and opened.size not in {None, self._size}):
            if opened.response is not None:
                opened.response.close()
            raise UpstreamInvalid(f"the blob had {self._size} bytes before, and has {opened.size} now")
        self._size = opened.size if self._size is None else self._size
        return opened

    def _too_long(self, end: int) -> UpstreamInvalid:
        self._drop_response()
        return UpstreamInvalid(f"the body goes on after byte {end}, where it should end")

    def _take(self, limit: int) -> bytes:
        """Up to ``limit`` bytes of what is held."""
        data = self._held.take(limit)
        self._position += len(data)
        return data

    def _drop_response(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None and opened.response is not None:
            opened.response.close()

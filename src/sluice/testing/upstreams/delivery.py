"""Sending a reply as it says: whole, cut, stalled or slow. The thin, doing half of the faults."""

from __future__ import annotations

import time
from collections.abc import Callable

from sluice.testing.upstreams.line import Line
from sluice.testing.upstreams.pacer import Pacer
from sluice.testing.upstreams.reply import Framing, Reply
from sluice.testing.upstreams.seen import SeenRequest

PIECE_BYTES = 256 * 1024

Stay = Callable[[Line], bool]
"""Waits as long as a stall lasts; False where the client left or the server stops."""


class Left(Exception):
    """The client went away."""


def deliver(line: Line, request: SeenRequest, reply: Reply, stay: Stay, *, close: bool) -> bool:
    """Send ``reply``; whether the connection can go on. Raises OSError or Left where the client is gone.

    A connection that cannot go on has been ended here, as the reply wants it.
    """
    plan = reply.delivery
    if plan.stall_before_head and not stay(line):
        raise Left
    if plan.cut_before_head:
        line.cut(rst=plan.rst)
        return False
    close = close or reply.framing is Framing.CLOSE
    request.status = reply.status
    line.sock.sendall(reply.head(close=close))
    if request.method != "HEAD" and not _send_body(line, request, reply, stay):
        line.cut(rst=plan.rst)
        return False
    if close:
        line.finish()
    return not close


def _send_body(line: Line, request: SeenRequest, reply: Reply, stay: Stay) -> bool:
    """Send the body; False where it is to be cut."""
    plan = reply.delivery
    pacer = Pacer(plan.bytes_per_s) if plan.bytes_per_s is not None else None
    most = PIECE_BYTES if pacer is None else pacer.piece(PIECE_BYTES)
    chunked = reply.framing is Framing.CHUNKED
    stalls = [] if plan.stall_after is None else [plan.stall_after]
    while request.bytes_sent < reply.length:
        sent = request.bytes_sent
        if stalls and sent == stalls[0]:
            stalls.clear()
            if not stay(line):
                raise Left
        if sent == plan.cut_after:
            return False
        marks = (reply.length, plan.cut_after, *stalls)
        upto = min(mark for mark in marks if mark is not None and mark > sent)
        piece = reply.octets.read(reply.start + sent, min(upto - sent, most))
        if pacer is not None and not line.pause(pacer.reserve(len(piece), time.monotonic())):
            raise Left
        if chunked:
            line.sock.sendall(b"%x\r\n" % len(piece))
        _send_counted(line, request, piece)
        if chunked:
            line.sock.sendall(b"\r\n")
    if chunked:
        line.sock.sendall(b"0\r\n\r\n")
    return True


def _send_counted(line: Line, request: SeenRequest, piece: memoryview) -> None:
    while piece:
        taken = line.sock.send(piece)
        request.bytes_sent += taken
        piece = piece[taken:]

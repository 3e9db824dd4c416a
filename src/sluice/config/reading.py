"""Reading a file that somebody named: bounded, and never waiting for ever."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from sluice.errors import ConfigInvalid

PIPE_S = 10.0
"""How long a pipe that a person named may take to say all it has to say."""
_CHUNK_BYTES = 1 << 16
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_named(path: Path, bytes_max: int, *, pipe_s: float = 0) -> bytes:
    """The content, or its first ``bytes_max`` + 1 bytes.

    Regular files and ``/dev/null`` are read; with ``pipe_s`` also a pipe that ends within so many seconds, as ``<(…)``
    of a shell does. Raises OSError, and ConfigInvalid where it is something else.
    """
    # Without O_NONBLOCK opening a pipe waits for whoever writes into it, and opening some devices for a carrier.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode) or _is_null(facts):
            return _read(descriptor, bytes_max + 1)
        if stat.S_ISFIFO(facts.st_mode) and pipe_s:
            return _read_pipe(descriptor, path, bytes_max + 1, pipe_s)
    finally:
        os.close(descriptor)
    kind = next((name for is_kind, name in _KINDS if is_kind(facts.st_mode)), "no file")
    raise ConfigInvalid(f"{path} is {kind}: name a regular file")


def _read(descriptor: int, limit: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit)


def _is_null(facts: os.stat_result) -> bool:
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == os.stat(os.devnull).st_rdev


def _read_pipe(descriptor: int, path: Path, limit: int, pipe_s: float) -> bytes:
    """Up to its end. An empty pipe without a writer has not ended: who writes may come later."""
    deadline = time.monotonic() + pipe_s
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    content = b""
    while len(content) < limit:
        left_s = deadline - time.monotonic()
        found = _available(descriptor, limit - len(content))
        content += found or b""
        if found == b"" and content:
            break
        events = waiting.poll(max(0, left_s * 1000)) if not found else []
        if left_s <= 0 or (not found and not events):
            raise ConfigInvalid(f"{path} is a pipe that has not ended within {pipe_s:g} s: name a regular file")
        if events and not events[0][1] & select.POLLIN:
            break  # the writer has left without a word
    return content


def _available(descriptor: int, count: int) -> bytes | None:
    """What can be read at once; None where there will be more, and nothing where nobody writes."""
    try:
        return os.read(descriptor, min(count, _CHUNK_BYTES))
    except BlockingIOError:
        return None

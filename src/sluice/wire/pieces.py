"""Bytes that came in pieces of any size and go out in others, copied once at most."""

from __future__ import annotations

from collections import deque


class Pieces:
    """A queue of bytes; ``len`` is how many there are."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def append(self, piece: bytes) -> None:
        """Add at the end."""
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)

    def take(self, limit: int) -> bytes:
        """Remove up to ``limit`` bytes from the beginning; not copied where that is a whole piece."""
        taken: list[bytes | memoryview] = []
        left = limit
        while self._pieces and left > 0:
            piece = self._pieces[0]
            if len(piece) <= left:
                taken.append(self._pieces.popleft())
            else:
                view = memoryview(piece)
                taken.append(view[:left])
                self._pieces[0] = view[left:]
            left -= len(taken[-1])
        first = taken[0] if len(taken) == 1 else None
        data = first if isinstance(first, bytes) else b"".join(taken)
        self._held -= len(data)
        return data

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self._held = 0

"""What a cache remembers in memory for a while: bounded in number, weight and time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Up to ``weight_max`` in weight, of which the least recently used leave first; each for ``period_s`` seconds.

    What has expired is still there for ``get_expired`` until it has to make room.
    """

    def __init__(
        self, weight_max: int, period_s: float, clock: Callable[[], float], weigh: Callable[[V], int] = lambda _: 1
    ) -> None:
        self._weight_max = weight_max
        self._period_s = period_s
        self._clock = clock
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V) -> None:
        """Remember it from now on, in the place of what was there."""
        self.forget(key)
        self._entries[key] = (self._clock(), value)
        self._weight += self._weigh(value)
        while self._weight > self._weight_max:
            _, (_, lost) = self._entries.popitem(last=False)
            self._weight -= self._weigh(lost)

    def get(self, key: K) -> V | None:
        """What is remembered, not expired."""
        found = self._entries.get(key)
        if found is None or not 0 <= self._clock() - found[0] < self._period_s:
            return None
        self._entries.move_to_end(key)
        return found[1]

    def get_expired(self, key: K) -> V | None:
        """What is remembered, however old."""
        found = self._entries.get(key)
        return None if found is None else found[1]

    def since(self, key: K) -> float | None:
        """When it was put there, in the clock's seconds."""
        found = self._entries.get(key)
        return None if found is None else found[0]

    def forget(self, key: K) -> None:
        """Remember it no longer; not an error where it is not there."""
        found = self._entries.pop(key, None)
        if found is not None:
            self._weight -= self._weigh(found[1])

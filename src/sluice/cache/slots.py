"""Which fills run and which wait: fairly between upstreams, and those first that somebody waits for.

Up to ``slots_max`` run. Of those that wait, the next is one that is wanted, of the upstream that has the fewest
running, and then the one that came first. Two rules keep one upstream's fills from starving another's:

* A wanted fill whose upstream has less than its share starts at once, though all slots are taken. So up to
  ``SHARES_FACTOR`` times ``slots_max`` run for a while, which is the bound of their memory.
* A fill that nobody waits for gives way to one that is wanted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from typing import Protocol

SHARES_FACTOR = 2


class Holder(Protocol):
    """What has a slot or waits for one."""

    @property
    def lane(self) -> Hashable:
        """Whose slots it takes: its upstream."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""

    @property
    def parting(self) -> bool:
        """Whether it ends by itself in a moment."""

    @property
    def position(self) -> int:
        """What it would lose by giving way."""

    def give_way(self) -> None:
        """End, and call ``Slots.leave``."""


class Slots:
    """For one event loop."""

    def __init__(self, slots_max: int) -> None:
        self._slots_max = slots_max
        self._running: dict[Holder, None] = {}
        self._waiting: dict[Holder, asyncio.Future[None]] = {}  # in the order in which they came
        self._leaving: set[Holder] = set()

    @property
    def running(self) -> int:
        """How many have a slot."""
        return len(self._running)

    async def take(self, holder: Holder) -> None:
        """Wait for a slot; ``leave`` gives it back, and is called where this is cancelled too."""
        turn = self._waiting[holder] = asyncio.get_running_loop().create_future()
        self.settle()
        await turn

    def leave(self, holder: Holder) -> None:
        """It has ended, or waits no longer; idempotent."""
        self._waiting.pop(holder, None)
        self._running.pop(holder, None)
        self._leaving.discard(holder)
        self.settle()

    def unwanted(self) -> Holder | None:
        """The one that has waited longest of those that nobody waits for."""
        return next((one for one in self._waiting if not one.wanted), None)

    def settle(self) -> None:
        """Let those run whose turn it is; to be called whenever somebody begins or ceases to want one."""
        while self._waiting and (holder := self._next()) is not None:
            turn = self._waiting.pop(holder)
            if not turn.done():  # its waiter was cancelled, and is about to leave
                self._running[holder] = None
                turn.set_result(None)
        for _ in range(sum(one.wanted for one in self._waiting) - len(self._leaving)):
            if not self._part_with_one():
                return

    def _next(self) -> Holder | None:
        running = self._by_lane()
        first = min(self._waiting, key=lambda one: (not one.wanted, running[one.lane]))
        if len(self._running) < self._slots_max:
            return first
        lanes = set(running) | {one.lane for one in self._waiting if one.wanted}
        below = running[first.lane] < max(1, self._slots_max // len(lanes or {None}))
        room = len(self._running) < SHARES_FACTOR * self._slots_max
        return first if first.wanted and below and room else None

    def _part_with_one(self) -> bool:
        running = self._by_lane()
        idle = [one for one in self._running if not (one.wanted or one.parting or one in self._leaving)]
        if not idle:
            return False
        least = min(idle, key=lambda one: (-running[one.lane], one.position))
        self._leaving.add(least)
        least.give_way()
        return True

    def _by_lane(self) -> Counter[Hashable]:
        return Counter(one.lane for one in self._running)

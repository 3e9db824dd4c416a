"""Checking passwords at a bounded price: bcrypt once per user and password, never on the event loop.

``access`` calls ``PasswordCheck.check`` for Basic credentials. A bcrypt check costs a quarter of a second of one core
on purpose; so there is one low-priority thread for them, a bounded queue in front, and a memory of results. The memory
is keyed by the user's current hash: a changed password cannot match an old result. ``Remembered`` is that memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sluice.errors import TooManyRequests, Unavailable
from sluice.server.users import User, Users, bcrypt_input, hash_of_nobody, password_matches

WAITING_DEFAULT = 64
WAITING_PER_NAME_PART = 8  # one name may hold one part in so many of the queue
MATCH_LIFE_S = 300.0
MISMATCH_LIFE_S = 60.0
MATCHES_MAX = 10_000
MISMATCHES_MAX = 1_000
_NICENESS = 10

V = TypeVar("V")


class Remembered(Generic[V]):
    """At most ``entries_max`` values, each until its own time; the one unused for longest goes first."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: OrderedDict[bytes, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """The value, or None when it is unknown or its time has come."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, key: bytes, value: V, expires: float) -> None:
        """Keep ``value`` until ``expires``, in the clock that ``get`` is asked with."""
        self._entries[key] = (expires, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)


@dataclass(slots=True)
class _Job:
    """One check to be done; ``outcome`` is None when the server stops first."""

    key: bytes
    material: bytes
    password_hash: bytes
    outcome: asyncio.Future[bool | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class PasswordCheck:
    """Compares passwords for one event loop."""

    def __init__(
        self,
        users: Users,
        waiting_max: int = WAITING_DEFAULT,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``waiting_max`` is ``limits.password_checks``; ``clock`` counts seconds."""
        self._users = users
        self._waiting_max = waiting_max
        self._waiting_max_per_name = max(1, waiting_max // WAITING_PER_NAME_PART)
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._nobody = hash_of_nobody(users.cost)
        self._results: dict[bool, Remembered[bool]] = {True: Remembered(MATCHES_MAX), False: Remembered(MISMATCHES_MAX)}
        self._asked: dict[bytes, _Job] = {}
        self._turns: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._waiting = 0
        self._busy = False
        self._closed = False
        self._executor = ThreadPoolExecutor(1, "password", initializer=_step_back)

    async def check(self, name: str, password: str) -> User | None:
        """The user when name and password are right, else None; None takes as long for a name that nobody has.

        Raises TooManyRequests when too many checks wait, Unavailable when the server is stopping.
        """
        material = bcrypt_input(password)
        if material is None:
            return None
        user = self._users.get(name)
        password_hash = self._nobody if user is None else user.password_hash.encode()
        key = self._key(name, material, password_hash)
        matches = self._recall(key)
        if matches is None:
            matches = await self._find_out(name, _Job(key, material, password_hash))
            user = self._still(name, user)
        return user if matches else None

    def close(self) -> None:
        """Stop; checks that wait end with Unavailable."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        for job in self._asked.values():
            if not job.outcome.done():
                job.outcome.set_result(None)
        self._asked.clear()
        self._turns.clear()

    def _still(self, name: str, user: User | None) -> User | None:
        """The user's record as it is now; None when the password changed while it was being checked."""
        current = self._users.get(name)
        return current if user and current and current.password_hash == user.password_hash else None

    def _key(self, name: str, material: bytes, password_hash: bytes) -> bytes:
        raw_name = name.encode("utf-8", "surrogatepass")
        lengths = f"{len(raw_name)} {len(material)} ".encode()  # so that no two triples join to the same bytes
        return hmac.digest(self._secret, lengths + raw_name + material + password_hash, "sha256")

    def _recall(self, key: bytes) -> bool | None:
        now = self._clock()
        for remembered in self._results.values():
            if (matches := remembered.get(key, now)) is not None:
                return matches
        return None

    async def _find_out(self, name: str, job: _Job) -> bool:
        asked = self._asked.get(job.key)
        if asked is None:
            asked = job
            self._enqueue(name, job)
        # The same question may be waited for by others: one that gives up must not cancel it for them.
        matches = await asyncio.shield(asked.outcome)
        if matches is None:
            raise Unavailable("the server is stopping; ask again in a moment")
        return matches

    def _enqueue(self, name: str, job: _Job) -> None:
        if self._closed:
            raise Unavailable("the server is stopping; ask again in a moment")
        if self._waiting >= self._waiting_max or len(self._turns.get(name, ())) >= self._waiting_max_per_name:
            raise TooManyRequests(
                f"too many passwords wait to be checked (limits.password_checks is {self._waiting_max},"
                f" of which one name may hold {self._waiting_max_per_name}); try again in a moment"
            )
        self._asked[job.key] = job
        self._turns.setdefault(name, deque()).append(job)
        self._waiting += 1
        self._start_next()

    def _start_next(self) -> None:
        """Give the thread its next job, names taking turns: guessing at one name delays another by one check."""
        if self._busy or not self._turns:
            return
        name, jobs = self._turns.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._turns[name] = jobs
        self._waiting -= 1
        self._busy = True
        running = asyncio.get_running_loop().run_in_executor(
            self._executor, password_matches, job.material, job.password_hash
        )
        running.add_done_callback(lambda done: self._finish(job, done))

    def _finish(self, job: _Job, done: asyncio.Future[bool]) -> None:
        self._busy = False
        self._asked.pop(job.key, None)
        if done.cancelled() or self._closed:
            return
        # For the key that stands for nobody, a match would be a match with a hash that no user has.
        matches = done.exception() is None and done.result() and job.password_hash != self._nobody
        life_s = MATCH_LIFE_S if matches else MISMATCH_LIFE_S
        self._results[matches].put(job.key, matches, self._clock() + life_s)
        job.outcome.set_result(matches)
        self._start_next()


def _step_back() -> None:
    """Let everything else in the process run first (Linux: niceness belongs to the thread)."""
    with contextlib.suppress(OSError):  # a sandbox may forbid it; the checks are bounded without it as well
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)

"""Whom the upstream lets: content fetched with our credentials, served only to callers whose own would fetch it too.

With ``cache.authorize: upstream`` the server asks ``Tenants`` before it serves anything of an upstream that has
credentials. The upstream is asked once for each caller and repository, with what the caller sent to us, and its word is
good for ``PROOF_S`` seconds. While it cannot be asked, the last time it let the caller in is good for
``tag_stale_max_s``: an outage must not lock out those who were in, and lets nobody new in.

A 404 is ambiguous: to some upstreams, what one may not see is not there. Who was never let in gets it as it is, held or
not. About who was let in before, our own credentials decide: where the upstream has the same thing for us, it hides it
from the caller, whose right is gone; else the 404 is about the thing alone, and whether that is served nevertheless is
not decided here.

No password is kept: a caller is remembered by a keyed hash, whose key ends with the process.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from sluice.cache.flights import Flights
from sluice.cache.policy import CachePolicy
from sluice.cache.recent import Recent
from sluice.cache.sources import ABSENT
from sluice.errors import Denied, UpstreamError, UpstreamUnauthorized
from sluice.oci.reference import Repository

PROOF_S = 60.0
PROOFS_MAX = 10_000  # (caller, repository)


@dataclass(frozen=True, slots=True)
class Caller:
    """Name and password as the caller sent them to us."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """Something that is wanted of a repository. ``about`` tells it from what else may be wanted there; ``ask`` asks the
    upstream with these credentials (None: without any), ``ask_as_us`` with ours; both raise what it answers."""

    about: Hashable
    ask: Callable[[Caller | None], Awaitable[object]]
    ask_as_us: Callable[[], Awaitable[object]]


class Tenants:
    """Who has been let in by one cache's upstreams. For one event loop."""

    def __init__(self, policy: CachePolicy, clock: Callable[[], float]) -> None:
        self._stale_max_s = policy.tag_stale_max_s
        self._deadline_s = policy.head_deadline_s
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self._flights = Flights()
        self._allowed: Recent[tuple[bytes, Repository], bool] = Recent(PROOFS_MAX, PROOF_S, clock)
        self._refused: Recent[tuple[bytes, Repository], bool] = Recent(PROOFS_MAX, policy.negative_s, clock)

    async def require(self, repository: Repository, caller: Caller | None, question: Question) -> None:
        """Return where the upstream lets the caller have what ``question`` is about, or lets him in and does not have
        it any more.

        Raises Denied where it does not, its word that there is no such thing for this caller, or an UpstreamError where
        it cannot be asked and has not let the caller in lately.
        """
        key = (self._hash(caller), repository)
        if self._allowed.get(key) is not None:
            return
        if self._refused.get(key) is not None:
            raise _denied(repository, caller)
        try:
            # What one answer may say of another question, _allowed and _refused remember; a 404 says nothing of it.
            flight = (*key, question.about)
            await self._flights.ask(flight, lambda: self._ask(question, caller), self._deadline_s)
        except UpstreamUnauthorized:
            self._allowed.forget(key)
            self._refused.put(key, True)
            raise _denied(repository, caller) from None
        except ABSENT:
            if not self._was_let_in(key):
                raise
            if await self._is_there_for_us(repository, question):
                self._allowed.forget(key)
                raise
            return
        except UpstreamError:
            if not self._was_let_in(key):
                raise
            return
        self._refused.forget(key)
        self._allowed.put(key, True)

    async def close(self) -> None:
        """End what is being asked; idempotent."""
        await self._flights.close()

    def _was_let_in(self, key: tuple[bytes, Repository]) -> bool:
        since = self._allowed.since(key)
        return since is not None and 0 <= self._clock() - since < self._stale_max_s

    async def _is_there_for_us(self, repository: Repository, question: Question) -> bool:
        """False where nobody knows, too: then the last time that the caller was let in counts, as in an outage."""
        flight = ("ours", repository, question.about)
        try:
            await self._flights.ask(flight, lambda: self._ask_as_us(question), self._deadline_s)
        except (UpstreamError, *ABSENT):
            return False
        return True

    async def _ask(self, question: Question, caller: Caller | None) -> None:
        await question.ask(caller)

    async def _ask_as_us(self, question: Question) -> None:
        await question.ask_as_us()

    def _hash(self, caller: Caller | None) -> bytes:
        if caller is None:
            return b""
        text = f"{len(caller.name)}:{caller.name}:{caller.password}"
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=32).digest()


def _denied(repository: Repository, caller: Caller | None) -> Denied:
    who = "callers without credentials" if caller is None else f"user {caller.name!r}"
    return Denied(f"the upstream does not let {who} pull from {repository}; ask whoever administers it")

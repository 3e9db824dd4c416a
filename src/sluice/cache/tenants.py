"""Whom the upstream lets: content fetched with our credentials, served only to callers whose own would fetch it too.

With ``cache.authorize: upstream`` the server asks ``Tenants`` before it serves anything of an upstream that has
credentials. The upstream is asked once for each caller and repository, with what the caller sent to us, and its word is
good for ``PROOF_S`` seconds. While it cannot be asked, the last time it let the caller in is good for
``tag_stale_max_s``: an outage must not lock out those who were in, and lets nobody new in.

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
    upstream with these credentials (None: without any), and raises what it answers."""

    about: Hashable
    ask: Callable[[Caller | None], Awaitable[object]]


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
        """Return where the upstream lets the caller have what ``question`` is about.

        Raises Denied where it does not, its word that there is no such thing, or an UpstreamError where it cannot be
        asked and has not let the caller in lately.
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
            self._allowed.forget(key)  # to some upstreams, what one may not see is not there
            raise
        except UpstreamError:
            since = self._allowed.since(key)
            if since is None or not 0 <= self._clock() - since < self._stale_max_s:
                raise
            return
        self._refused.forget(key)
        self._allowed.put(key, True)

    async def close(self) -> None:
        """End what is being asked; idempotent."""
        await self._flights.close()

    async def _ask(self, question: Question, caller: Caller | None) -> None:
        await question.ask(caller)

    def _hash(self, caller: Caller | None) -> bytes:
        if caller is None:
            return b""
        text = f"{len(caller.name)}:{caller.name}:{caller.password}"
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=32).digest()


def _denied(repository: Repository, caller: Caller | None) -> Denied:
    who = "callers without credentials" if caller is None else f"user {caller.name!r}"
    return Denied(f"the upstream does not let {who} pull from {repository}; ask whoever administers it")

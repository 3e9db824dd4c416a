"""Bearer tokens that are in use: kept until shortly before they run out, fetched once however many ask.

``auth`` says what a token is for (realm, service, scopes, whose credentials) and how to fetch one.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from sluice.errors import UpstreamInvalid

TOKENS_MAX = 4096
"""Tokens kept; the one used longest ago goes first."""
TOKEN_LENGTH_MAX = 16 * 1024
LIFETIME_DEFAULT_S = 60
"""Docker token specification: where the answer does not say."""
LIFETIME_MAX_S = 86_400
MARGIN_S = 10.0
"""A token is not used in its last seconds, or the last quarter of a short life: it must live until it has arrived."""

_TOKEN = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """``lifetime_s`` counts from when it was asked for."""

    text: str = field(repr=False)
    lifetime_s: float


def parse_token(body: bytes) -> Token:
    """The answer of a token endpoint, ``token`` or ``access_token``; raises UpstreamInvalid."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise UpstreamInvalid("the token endpoint answers with what is not JSON") from None
    found = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(found, str) or len(found) > TOKEN_LENGTH_MAX or _TOKEN.fullmatch(found) is None:
        raise UpstreamInvalid("the token endpoint answers without a token that could be sent")
    lifetime = answer.get("expires_in")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not lifetime > 0:
        lifetime = LIFETIME_DEFAULT_S
    return Token(found, float(min(lifetime, LIFETIME_MAX_S)))


class TokenCache:
    """``clock`` is in seconds and does not run backwards."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[str, float]] = OrderedDict()
        self._fetches: dict[Hashable, asyncio.Task[str]] = {}

    def held(self, key: Hashable) -> str | None:
        """The token, as long as it can be used."""
        text, until = self._kept.get(key, ("", 0.0))
        if not text:
            return None
        if self._clock() >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return text

    def drop(self, key: Hashable, text: str) -> None:
        """Forget a token that was refused, unless another has taken its place already."""
        if self._kept.get(key, ("", 0.0))[0] == text:
            del self._kept[key]

    async def get(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> str:
        """The token, fetched where none is held; raises what ``fetch`` raises.

        The fetch belongs to nobody: it goes on for the others when one of those who wait leaves.
        """
        text = self.held(key)
        if text is not None:
            return text
        task = self._fetches.get(key)
        if task is None:
            task = asyncio.create_task(self._fetch(key, fetch))
            self._fetches[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(task)

    async def _fetch(self, key: Hashable, fetch: Callable[[], Awaitable[Token]]) -> str:
        asked_at = self._clock()
        token = await fetch()
        until = asked_at + token.lifetime_s - min(MARGIN_S, token.lifetime_s / 4)
        self._kept[key] = (token.text, until)
        self._kept.move_to_end(key)
        if len(self._kept) > TOKENS_MAX:
            self._kept.popitem(last=False)
        return token.text

    def _fetched(self, key: Hashable, task: asyncio.Task[str]) -> None:
        del self._fetches[key]
        if not task.cancelled():
            task.exception()  # seen, also where everybody who waited has left

    async def close(self) -> None:
        """End what is being fetched."""
        fetches = list(self._fetches.values())
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

"""A new configuration while the server runs: the file is watched, read again, and what can change at once does.

The mode and what belongs to it are a wiring (``modes.wire``); another one takes its place, and what runs on the old one
goes on. Everything else needs a restart and is named. A configuration that is not valid changes nothing.

Files that upstreams' clients are made of (CAs, client certificates) are watched too: where one has changed, the same
configuration is put in force anew. Passwords are read again by whoever sends them (``upstream.credentials``).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from sluice.config import LEAVES, ConfigSource, RegistryConfig
from sluice.errors import ConfigInvalid

log = logging.getLogger("sluice.server")

CONFIG_CHECK_S = 1.0
SETTLE_S = 0.1  # for which a file must have stood still: one that is being written may look whole
LIVE = ("mode", "upstream", "registries", "cache")
"""What changes at once."""

Signature = tuple[int, int, int] | None


class Reload:
    """``config`` is in force. ``apply`` puts another one in force or raises ConfigInvalid; ``valid`` says whether the
    last one that was read could be."""

    def __init__(
        self,
        source: ConfigSource,
        config: RegistryConfig,
        apply: Callable[[RegistryConfig], Awaitable[None]],
        named: Callable[[RegistryConfig], Collection[Path]] = lambda _: (),
    ) -> None:
        """``named``: the files that a configuration names and that ``apply`` reads."""
        self.config = config
        self.valid = True
        self._source = source
        self._apply = apply
        self._named = named
        self._asked = config  # the last one that was read, in force or not: what it lacks may come
        self._seen = self._signatures()
        self._taken = self._seen[1:]
        self._lock = asyncio.Lock()

    async def look(self) -> None:
        """Read everything again where a file has changed since, and stands still."""
        found = await asyncio.to_thread(self._signatures)
        while found != self._seen:
            self._seen = found
            await asyncio.sleep(SETTLE_S)
            found = await asyncio.to_thread(self._signatures)
            if found == self._seen:
                await self.read()
                return

    def _signatures(self) -> tuple[Signature, ...]:
        return tuple(map(signature, (self._source.path, *self._named(self._asked))))

    async def read(self) -> None:
        """Read everything again, and put in force what has changed."""
        async with self._lock:
            try:
                await self._take(await asyncio.to_thread(self._source.load))
            except ConfigInvalid as error:
                self.valid = False
                log.error("the configuration stays as it is: %s", error.message)
            else:
                self.valid = True

    async def _take(self, found: RegistryConfig) -> None:
        self._asked = found
        named = (await asyncio.to_thread(self._signatures))[1:]
        self._seen = (self._seen[0], *named)  # the configuration's own is from before it was read
        live = [key for key in LEAVES if key.partition(".")[0] in LIVE]
        fixed = differing([key for key in LEAVES if key not in live], self.config, found)
        changed = differing(live, self.config, found)
        if changed or named != self._taken:
            wanted = self.config.model_copy(update={key: getattr(found, key) for key in LIVE})
            await self._apply(wanted)
            self.config, self._taken = wanted, named
            log.info("in force now: %s", ", ".join(changed) or "the present content of the upstreams' files")
        if fixed:
            log.warning("changed, and in force only after a restart: %s", ", ".join(fixed))


def differing(keys: list[str], one: RegistryConfig, other: RegistryConfig) -> list[str]:
    """The keys whose values differ."""
    return [key for key in keys if _value(one, key) != _value(other, key)]


def _value(config: RegistryConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def signature(path: Path | None) -> Signature:
    """What changes when a file does, also behind a link; None where it is not there."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

"""Our credentials for one address: where they come from, and which of two to use while they change.

``auth`` asks for the candidates before a request and reports how each fared. Files are read again when they have
changed, so that a password is rotated without a restart. Last known good: new credentials replace the old ones only
when they have worked once. So it does not matter whether the file changes before the upstream does or after.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from sluice.errors import ConfigInvalid, UpstreamUnauthorized
from sluice.upstream.docker_config import Credentials, find_entry
from sluice.upstream.program import ask_program
from sluice.upstream.settings import (
    Anonymous,
    CredentialProgram,
    CredentialSettings,
    DockerConfig,
    PasswordFile,
    StaticPassword,
)
from sluice.wire.address import UpstreamAddress

FILE_BYTES_MAX = 1 << 20
PROGRAM_KEPT_S = 300.0
"""Seconds for which a helper's answer is used without asking again, unless it is refused."""

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class CredentialSource:
    """Raises ConfigInvalid at once where a file cannot be read or understood; later, what was known is kept."""

    def __init__(self, settings: CredentialSettings, address: UpstreamAddress, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._address = address
        self._clock = clock
        self._read_lock = asyncio.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._helper: tuple[str, str] | None = None
        self._asked_at: float | None = None
        self._in_file: Credentials | None = None
        self._newest: Credentials | None = None
        self._good: Credentials | None = None
        self._refused: Credentials | None = None
        self._complaint: str | None = None
        match settings:
            case StaticPassword(name, password):
                self._newest = Credentials(name, password)
            case PasswordFile() | DockerConfig():
                self._read_file(settings.path)
            case CredentialProgram(program):
                self._helper = (program, address.authority)
            case Anonymous():
                pass

    async def get(self) -> Credentials | None:
        """What to try first; None is anonymous."""
        return (await self.candidates())[0]

    async def candidates(self) -> tuple[Credentials | None, ...]:
        """What to try, in this order: one, or two while new credentials have not worked yet."""
        if isinstance(self._settings, PasswordFile | DockerConfig | CredentialProgram):
            async with self._read_lock:
                await self._refresh()
        if self._good is None or self._good == self._newest:
            return (self._newest,)
        if self._newest is None or self._newest == self._refused:
            return (self._good, self._newest)
        return (self._newest, self._good)

    def worked(self, credentials: Credentials | None) -> None:
        """The upstream has taken these."""
        if credentials is None or credentials == self._good:
            return
        self._good = credentials
        if credentials == self._newest:
            self._refused = None

    def refused(self, credentials: Credentials | None) -> None:
        """The upstream does not take these. Where others are known to have worked, those come first from now on."""
        self._asked_at = None
        if credentials is None or credentials != self._newest or credentials == self._refused:
            return
        self._refused = credentials
        if self._good not in {None, credentials}:
            log.warning(
                "upstream %s refuses the new credentials of %r; going on with those that worked last",
                self._address, credentials.name,
            )  # fmt: skip

    async def _refresh(self) -> None:
        try:
            if isinstance(self._settings, PasswordFile | DockerConfig):
                await asyncio.to_thread(self._read_file, self._settings.path)
            kept = self._asked_at is not None and self._clock() - self._asked_at < PROGRAM_KEPT_S
            if self._helper is not None and not kept:
                self._newest = await asyncio.to_thread(ask_program, *self._helper) or self._in_file
                self._asked_at = self._clock()
            self._complaint = None
        except (ConfigInvalid, UpstreamUnauthorized) as error:
            if self._newest is None and self._good is None:
                raise UpstreamUnauthorized(
                    f"no credentials for the upstream {self._address}: {error.message}"
                ) from None
            if self._complaint != error.message:
                self._complaint = error.message
                log.warning("%s; going on with the credentials known before", error.message)

    def _read_file(self, path: Path) -> None:
        """Read it where it has changed; raises ConfigInvalid, and then tries again the next time."""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
                if stamp == self._stamp:
                    return
                text = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigInvalid(f"upstream credentials file {path} cannot be read: {error.strerror}") from None
        if len(text) > FILE_BYTES_MAX:
            raise ConfigInvalid(f"upstream credentials file {path} has more than {FILE_BYTES_MAX} bytes")
        if isinstance(self._settings, PasswordFile):
            self._newest = _password(self._settings.name, path, text)
        else:
            self._read_config(path, text)
        self._stamp = stamp

    def _read_config(self, path: Path, text: bytes) -> None:
        try:
            entry = find_entry(text, self._address)
        except ValueError as error:
            raise ConfigInvalid(f"upstream credentials file {path} {error}") from None
        self._helper = None if entry.helper is None else (f"docker-credential-{entry.helper}", entry.server)
        self._asked_at = None
        self._in_file = entry.credentials
        if self._helper is None:
            self._newest = entry.credentials


def _password(name: str, path: Path, text: bytes) -> Credentials:
    """The first line; a file that a writer has just emptied is no password."""
    try:
        line = text.decode("utf-8").partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        raise ConfigInvalid(f"upstream password file {path} is not UTF-8") from None
    if not line:
        raise ConfigInvalid(f"upstream password file {path} is empty: its first line is the password")
    return Credentials(name, line)

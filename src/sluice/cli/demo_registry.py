"""The demo's registries: each a ``sluice serve`` of its own, and what it answers when it is asked.

What is asked here goes the way of every client: over TLS, with the CA that the registry made for itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sluice.cli.demo_children import Child
from sluice.errors import Unavailable
from sluice.server.admin import SOCKET_NAME, call

READY_S = 30.0
"""How long a registry may take to become ready, in seconds."""
ANSWER_S = 60.0
"""How long a registry may take to answer, in seconds."""
_ANSWERS = "sluice_cache_answers_total"


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything of one registry is."""

    name: str
    home: Path
    data: Path
    address: str
    operations: str

    @property
    def url(self) -> str:
        """``https://host:port``."""
        return f"https://{self.address}"

    @property
    def certificates(self) -> Path:
        """A directory with the CA and nothing else, as skopeo and containerd want it."""
        return self.home / f"certs-{self.name}"

    @property
    def ca(self) -> Path:
        """What clients trust it with."""
        return self.certificates / "ca.crt"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.home / f"{self.name}.log"

    def image(self, reference: str) -> str:
        """An image as skopeo names it."""
        return f"docker://{self.address}/{reference}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a registry answered to one request, for people."""

    status: int
    origin: str
    warning: str
    reason: str

    def __str__(self) -> str:
        said = [str(self.status), *(part for part in (self.reason, self.warning) if part)]
        return ", ".join([*said, f"Sluice-Cache: {self.origin}"] if self.origin else said)


class RunningRegistry:
    """``sluice serve`` at a place with these flags. A context manager: leaving drains and ends it."""

    def __init__(self, place: Place, *flags: str) -> None:
        self.place = place
        command = [sys.executable, "-m", "sluice", "serve", "--data", str(place.data), "--listen", place.address]
        command += ["--operations-listen", place.operations, *flags]
        # The demo's registries are as the demo says, whatever else the user has configured.
        others = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
        self._child = Child(f"sluice serve ({place.name})", command, place.log, others)

    def __enter__(self) -> Self:
        self._child.__enter__()
        try:
            self._await_ready()
        except BaseException as error:
            self._child.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def cut(self) -> None:
        """SIGKILL, as a power cut does it."""
        self._child.kill()

    def restart(self) -> None:
        """Start again on the same data, and wait until it is ready."""
        self._child.start()
        self._await_ready()

    def require_running(self) -> None:
        """Raise Unavailable where it has ended by itself."""
        self._child.require_running()

    def ask(self, command: str, arguments: dict[str, object]) -> Any:
        """What the server's own administration answers."""
        return call(self.place.data / SOCKET_NAME, command, arguments)

    def look(self, path: str) -> Answer:
        """GET something below ``/v2/`` and read it away."""
        context = ssl.create_default_context(cafile=str(self.place.ca))
        url = f"https://{self.place.address}/v2/{path}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S, context=context) as found:
                while found.read(1 << 20):
                    pass
                return Answer(found.status, found.headers.get("Sluice-Cache", ""), found.headers.get("Warning", ""), "")
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, "", "", _reason(error.read()))
        except OSError as error:
            raise Unavailable(f"{self.place.url} does not answer: {error}") from error

    def origins(self) -> Counter[str]:
        """How many answers came from where since its start, by its own metrics."""
        counted: Counter[str] = Counter()
        with urllib.request.urlopen(f"http://{self.place.operations}/metrics", timeout=ANSWER_S) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(f'{_ANSWERS}{{kind="'):
                    counted[line.split('"')[1]] = int(float(line.rpartition(" ")[2]))
        return counted

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self._child.require_running()
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://{self.place.operations}/readyz", timeout=2).close()
                self.place.certificates.mkdir(exist_ok=True)
                shutil.copyfile(self.place.data / "tls" / "ca.crt", self.place.ca)
                return
            time.sleep(0.05)
        raise Unavailable(f"{self.place.name} was not ready within {READY_S:.0f} s: see {self.place.log}")


def origins_between(before: Counter[str], after: Counter[str], order: Sequence[str]) -> str:
    """``5 started, 2 upstream``, in this order."""
    came = after - before
    return ", ".join(f"{came[kind]} {kind}" for kind in order if came[kind])


def _reason(body: bytes) -> str:
    try:
        first = json.loads(body)["errors"][0]
        return f"{first['code']}: {first['message']}"
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("latin-1")

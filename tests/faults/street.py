"""One Sluice in Proxy mode before many scripted upstreams, so that each test has one that nobody else has spoilt.

A server's start is the dear part of such a test. What a fault leaves behind (a circuit that is open, an answer that is
remembered) belongs to one upstream, and every upstream here has an image of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from sluice.oci.digest import Digest
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import Fault, UpstreamContent, UpstreamServer, UpstreamTls

REPOSITORY, TAG = "team/app", "v1"
USER, PASSWORD = "sluice", "correct-horse"
LAYER_BYTES = 1_000_003
IDLE_S = 0.6
HEAD_S = 1.0
CONNECT_S = 1.0
PATIENCE_S = 20.0
"""How long a test waits for what comes by itself."""
PIECE_BYTES = 64 * 1024
PLAIN = partial(SluiceServer, tls=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client got: ``ended`` is ``whole``, ``short`` (a FIN before the announced end) or ``reset``."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ended: str

    @property
    def code(self) -> str | None:
        """The specification's code of an error."""
        return str(json.loads(self.body)["errors"][0]["code"]) if self.status >= 400 else None

    @property
    def message(self) -> str:
        """What the error says to a person."""
        return str(json.loads(self.body)["errors"][0]["message"])

    @property
    def verdict(self) -> tuple[int, str | None]:
        """Status and code."""
        return self.status, self.code

    @property
    def origin(self) -> str | None:
        """Where it says that it came from."""
        return self.headers.get("sluice-cache")


def read_answer(response: http.client.HTTPResponse) -> Seen:
    """Read a response to whatever end it has."""
    headers = {name.lower(): value for name, value in response.getheaders()}
    pieces, ended = [], "whole"
    try:
        while piece := response.read1(PIECE_BYTES):
            pieces.append(piece)
    except http.client.IncompleteRead as error:
        pieces.append(error.partial)
        ended = "short"
    except ConnectionError:
        ended = "reset"
    body = b"".join(pieces)
    announced = headers.get("content-length")
    if ended == "whole" and announced is not None and response.length:
        ended = "short"
    return Seen(response.status, headers, body, ended)


def wait_until(claim: Callable[[], bool], what: str) -> None:
    """Return once ``claim`` holds; AssertionError at the limit."""
    deadline = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


def pulls(server: SluiceServer, path: str, method: str = "GET", **headers: str) -> Seen:
    """One request under ``/v2/`` over a connection of its own."""
    with contextlib.closing(RegistryClient(server, timeout_s=2 * PATIENCE_S).connect()) as connection:
        connection.request(method, f"/v2/{path}", None, headers)
        return read_answer(connection.getresponse())


def contents(server: SluiceServer) -> dict[str, Path]:
    """Everything that is visible in the store, by hex digest."""
    return {path.name: path for path in (server.data / "content").rglob("*") if path.is_file()}


def check_whole(server: SluiceServer) -> None:
    """No spool is left, and whatever is visible is what its name says."""
    spools = server.data / "uploads"
    wait_until(lambda: [] == [path for path in spools.rglob("*") if path.is_file()], f"{spools} is empty")
    for name, path in contents(server).items():
        assert name == hashlib.new(path.parent.parent.name, path.read_bytes()).hexdigest(), path


class House:
    """An upstream with one image, and the way to it through Sluice.

    ``layer`` has more bytes than are verified before their head; ``digest`` and ``image`` are the layer's and the
    manifest's. Without a ``name`` it is the default upstream.
    """

    def __init__(self, sluice: SluiceServer, name: str, server: UpstreamServer | None = None) -> None:
        self.sluice = sluice
        self._prefix = f"{name}/" if name else ""
        self.name = name
        self.server = server
        self.layer = random.Random(name).randbytes(LAYER_BYTES)
        self.digest = Digest.of(self.layer)
        if server is not None:
            self.image = server.content.push_image(REPOSITORY, TAG, [self.layer])

    @property
    def upstream(self) -> UpstreamServer:
        """The scripted upstream, where there is one."""
        assert self.server is not None
        return self.server

    def spoil(self, *faults: Fault) -> None:
        """Have the upstream do this from now on; without arguments, behave."""
        self.upstream.faults = faults

    def get(self, path: str, method: str = "GET", **headers: str) -> Seen:
        """A request below the repository: ``manifests/v1``."""
        return pulls(self.sluice, f"{self._prefix}{REPOSITORY}/{path}", method, **headers)

    def tag(self, name: str = TAG) -> Seen:
        """The manifest by its tag."""
        return self.get(f"manifests/{name}")

    def blob(self, **headers: str) -> Seen:
        """The layer."""
        return self.get(f"blobs/{self.digest}", **headers)

    def read_some(self, path: str, length: int) -> None:
        """Read so many bytes of a body, and leave."""
        with contextlib.closing(RegistryClient(self.sluice, timeout_s=PATIENCE_S).connect()) as connection:
            connection.request("GET", f"/v2/{self._prefix}{REPOSITORY}/{path}")
            response = connection.getresponse()
            assert response.status == 200, response.status
            while length > 0:
                piece = response.read1(min(length, PIECE_BYTES))
                assert piece, f"the body ended {length} bytes too early"
                length -= len(piece)

    @property
    def held(self) -> bool:
        """Whether the layer is visible in the store."""
        return self.digest.hex in contents(self.sluice)

    @property
    def logged(self) -> str:
        """Lines of the server's log about this upstream or its layer."""
        log = self.sluice.log.read_text("utf-8", "replace").splitlines()
        mine = (self.name, str(self.digest), str(self.server and self.server.port))
        return "\n".join(line for line in log if any(mark in line for mark in mine))


class Street:
    """``houses`` are given out one by one; ``dead`` are addresses by registry name, of which nothing is expected."""

    def __init__(self, sluice: SluiceServer, servers: Mapping[str, UpstreamServer], dead: Mapping[str, str]) -> None:
        self.sluice = sluice
        self._servers = servers
        self._free = iter([name for name in servers if name.startswith("u")])
        self._dead = dead

    def house(self, name: str | None = None) -> House:
        """One that nobody has used yet, or one that is like no other."""
        if name is not None and name in self._dead:
            return House(self.sluice, name)
        chosen = name or next(self._free)
        return House(self.sluice, chosen, self._servers[chosen])

    def metric(self, name: str) -> float:
        """The sum of a metric's series; all of them may have yet to come."""
        text = self.sluice.operations("/metrics")[1]
        assert f"# TYPE {name.removesuffix('_total')}" in text, f"there is no metric {name}"
        lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextlib.contextmanager
def street(
    directory: Path,
    count: int,
    *flags: str,
    tls: Mapping[str, UpstreamTls] | None = None,
    dead: Mapping[str, str] | None = None,
    ca: Path | None = None,
    make: Callable[..., SluiceServer] = PLAIN,
) -> Iterator[Street]:
    """Start a Sluice, made by ``make``, before ``count`` upstreams, those of ``tls`` by name, and the addresses
    ``dead``."""
    password = directory / "password"
    password.write_text(PASSWORD + "\n")
    with ExitStack() as stack:
        servers = {  # each listens before the next one looks for a free port
            name: stack.enter_context(UpstreamServer(UpstreamContent(), tls=(tls or {}).get(name)))
            for name in [*(f"u{number}.test" for number in range(count)), *(tls or {})]
        }
        addresses = {name: server.address for name, server in servers.items()}
        own = {"user": USER, "password_file": str(password), **({} if ca is None else {"ca": str(ca)})}
        limits = {"connect_s": CONNECT_S, "head_s": HEAD_S, "idle_s": IDLE_S}
        registries = {
            name: {"address": address, **own, **limits} for name, address in (addresses | dict(dead or {})).items()
        }
        config = directory / "sluice.yaml"
        nobody = next(iter(addresses.values()))
        config.write_text(yaml.safe_dump({"upstream": nobody, "registries": registries}))
        command = ("--config", str(config), "--mode", "proxy", *flags)
        sluice = stack.enter_context(make(directory / "data", *command))
        yield Street(sluice, servers, dead or {})

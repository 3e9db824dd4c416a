"""SIGKILL beside eviction and fills: one data directory of a cache with a small budget lives through all kills.

Clients pull images that do not all fit, so that every pull drives others out. After each kill the disk and the index
are compared as they lie there, once more after the next start, and everything that counts must be right again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.wire import BROKEN, Wire
from sluice.cache.chunks import CHUNK_BYTES_MAX
from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer

SHORT_KILLS = 8
LONG_KILLS = 120
TRAFFIC_S = 1.0  # at most, between start and kill
CLIENTS = 3
FILLS = 4
BUDGET_BYTES = 4_000_000  # for about three of the images
REPOSITORIES = ("team/app", "team/other")
PINNED = "i0"
_random = random.Random(9)
LAYERS = [_random.randbytes(size) for size in (20_000, 90_000, 200_000, 400_000, 700_000, 900_000) * 3]
IMAGES = {f"i{number}": [LAYERS[number], LAYERS[(number * 5 + 2) % len(LAYERS)]] for number in range(len(LAYERS))}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def stock(content: UpstreamContent) -> None:
    """Every image in both repositories; the layers are shared between images and repositories."""
    for repository in REPOSITORIES:
        for tag, layers in IMAGES.items():
            content.push_image(repository, tag, layers, annotations={"of": f"{repository}:{tag}"})


@dataclass
class Lives:
    """What the cache has shown. ``violations``: broken promises, in words."""

    server: SluiceServer
    violations: list[str] = field(default_factory=list)
    pulled: int = 0
    evicted: int = 0
    _killing: threading.Event = field(default_factory=threading.Event)

    def check_disk(self, moment: str) -> None:
        """Nobody runs, or nobody pulls: all bytes are within the budget and one chunk for each fill."""
        total = sum(path.stat().st_size for path in files(self.server.data / "content"))
        total += sum(path.stat().st_size for path in files(self.server.data / "uploads") if path.suffix != ".json")
        if total > BUDGET_BYTES + FILLS * CHUNK_BYTES_MAX:
            self.violations.append(f"{moment}: {total} bytes on the disk")

    def check_rows(self) -> None:
        """After a start: rows, files and counts agree, and what lies on the disk is within the budget."""
        with contextlib.closing(
            sqlite3.connect(f"{self.server.data.as_uri()}/index.sqlite?mode=ro", uri=True)
        ) as index:
            held = dict(index.execute("SELECT digest, size FROM contents"))
            condemned = dict(index.execute("SELECT digest, size FROM condemned"))
            totals = dict(index.execute("SELECT name, value FROM totals"))
        found = {
            f"{path.parent.parent.name}:{path.name}": path.stat().st_size
            for path in files(self.server.data / "content")
        }
        for digest in found.keys() - held.keys() - condemned.keys():
            self.violations.append(f"{digest} of {found[digest]} bytes has a file and no row")
        for digest, size in held.items():
            if found.get(digest) != size:
                self.violations.append(f"{digest} has a row of {size} bytes and a file of {found.get(digest)}")
        left = [path.name for path in files(self.server.data / "uploads")]
        if left:
            self.violations.append(f"uploads has {left}")
        if (totals["contents"], totals["bytes"]) != (len(held), sum(held.values())):
            self.violations.append(f"the totals are {totals}, counted are {len(held)} and {sum(held.values())}")
        if sum(found.values()) > BUDGET_BYTES:
            self.violations.append(f"{sum(found.values())} bytes are kept")

    def check_answers(self) -> None:
        """After a start: the check of the store finds nothing, the pinned image is there, whole, and nothing that was
        counted is forgotten."""
        report, status = (call(self.server.data / SOCKET_NAME, name, {}) for name in ("fsck", "cache status"))
        assert isinstance(report, dict)
        assert isinstance(status, dict)
        if not report["clean"]:
            self.violations.append(f"fsck: {report}")
        if status["evicted_images"] < self.evicted:
            self.violations.append(f"{self.evicted} images had left, now it is {status['evicted_images']}")
        if status["used_bytes"] > BUDGET_BYTES or status["granted_bytes"] or status["pinned"] != 1:
            self.violations.append(f"status: {status}")
        self.evicted = status["evicted_images"]
        with Wire(self.server) as wire:
            origins = {origin for _, origin in pull(wire, REPOSITORIES[0], PINNED)}
        if origins != {"hit"}:
            self.violations.append(f"of the pinned image came {origins}")

    def pull_on(self, seed: int) -> None:
        """Pull one image after another until the server goes away; some bodies are left half-way."""
        choice = random.Random(seed)
        while True:
            try:
                with Wire(self.server) as wire:
                    while True:
                        whole = choice.random() < 0.8
                        list(pull(wire, choice.choice(REPOSITORIES), choice.choice(list(IMAGES)), whole=whole))
                        self.pulled += 1
                        if not whole:
                            break  # the connection with it
            except AssertionError as error:
                self.violations.append(str(error))
                return
            except BROKEN as error:
                if not self._killing.wait(1.0):
                    self.violations.append(f"a connection broke while the server lived: {error!r}")
                return

    def live(self, seed: int) -> None:
        """Pulls by several clients at once, then SIGKILL."""
        self._killing.clear()
        clients = [
            threading.Thread(target=self.pull_on, args=(seed * 31 + one,), daemon=True) for one in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        time.sleep(random.Random(seed).uniform(0.1, TRAFFIC_S))
        self._killing.set()
        self.server.kill()
        for client in clients:
            client.join(60)
            assert not client.is_alive(), "a client still waits a minute after the server's end"


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def pull(wire: Wire, repository: str, tag: str, *, whole: bool = True) -> Iterator[tuple[str, str]]:
    """The digests of an image and where each came from. AssertionError where anything but its bytes came."""
    manifest = wire.ask("GET", f"/v2/{repository}/manifests/{tag}")
    assert manifest.status == 200, f"{repository}:{tag} answered {manifest.status}: {manifest.body[:300]!r}"
    document = json.loads(manifest.body)
    assert document["annotations"]["of"] == f"{repository}:{tag}"
    yield manifest.headers["docker-content-digest"], manifest.headers["sluice-cache"].partition(";")[0]
    for blob in (document["config"], *document["layers"]):
        if not whole:
            wire.begin("GET", f"/v2/{repository}/blobs/{blob['digest']}")
            return
        answer = wire.ask("GET", f"/v2/{repository}/blobs/{blob['digest']}")
        assert answer.status == 200, f"{blob['digest']} answered {answer.status}: {answer.body[:300]!r}"
        assert digest_of(answer.body) == blob["digest"], f"{blob['digest']} came with other bytes"
        yield blob["digest"], answer.headers["sluice-cache"].partition(";")[0]


def crash(server: SluiceServer, kills: int) -> Lives:
    """So many lives, or fewer where a promise is broken, and a last start to look."""
    lives = Lives(server)
    first = int(os.environ.get("CRASH_SEED", str(random.randrange(1 << 32))))
    print(f"CRASH_SEED={first}")  # shown by pytest where the test fails
    server.start()
    call(server.data / SOCKET_NAME, "cache warm", {"image": f"{REPOSITORIES[0]}:{PINNED}"})
    call(server.data / SOCKET_NAME, "cache pin", {"image": f"{REPOSITORIES[0]}:{PINNED}"})
    for life in range(kills):
        lives.live(first + life)
        lives.check_disk("killed")
        server.start()
        lives.check_rows()
        lives.check_answers()
        if lives.violations:
            break
    return lives


@contextlib.contextmanager
def flags() -> Iterator[tuple[str, ...]]:
    """How to start a cache before an upstream that has all images."""
    with UpstreamServer(UpstreamContent()) as upstream:
        stock(upstream.content)
        space = ("--cache-max-bytes", str(BUDGET_BYTES), "--cache-fills", str(FILLS))
        yield ("--mode", "proxy", "--upstream", upstream.address, *space, "--cache-tag-fresh-s", "3600")


def lives_of(server: SluiceServer, kills: int) -> Lives:
    """``crash``, and no process is left of it."""
    try:
        lives = crash(server, kills)
        assert lives.violations or server.stop() == 0
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
    return lives


def assert_survives(data: Path, kills: int) -> None:
    with flags() as given:
        server = SluiceServer(data, *given, tls=False)
        lives = lives_of(server, kills)
    assert lives.violations == []
    print(f"{kills} kills, {lives.pulled} images pulled, {lives.evicted} evicted")
    # The suite proves nothing where nothing had to leave.
    assert lives.evicted >= 5 * kills
    assert "Traceback" not in server.log.read_text("utf-8", "replace")


def test_a_cache_survives_kill_9_beside_eviction(tmp_path: Path) -> None:
    """Killed while it evicts and fills, a cache has after its next start a file for each row and a row for each file,
    right counts, a budget that holds, nothing to find for a check, and its pinned image whole."""
    assert_survives(tmp_path / "data", SHORT_KILLS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_cache_survives_many_kills_beside_eviction(tmp_path: Path) -> None:
    """The same for 120 kills on one data directory."""
    assert_survives(tmp_path / "data", LONG_KILLS)

"""Switching modes while the server runs: nothing that runs is cut, and what begins afterwards is served the new way.

Readers of large blobs stand still in the middle of their bodies at every switch, and other clients go on asking. Each
answer is checked to the last byte, and says by its headers which wiring gave it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sluice.testing.client import RegistryClient, digest_of
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import Stall, UpstreamContent, UpstreamServer, blobs

MIB = 1 << 20
LARGE = random.Random(5).randbytes(64 * MIB)
SMALL = random.Random(6).randbytes(300_000)
WORKERS = 4
HELD_AT_A_SWITCH = 2
SWITCH_S = 20.0
ROUND = ("proxy", "direct", "local")


@dataclass
class Site:
    """A server that its file switches, an upstream with the same image, and what clients have seen."""

    server: SluiceServer
    file: Path
    upstream: UpstreamServer
    cold: list[bytes] = field(default_factory=list)

    def configure(self, text: str) -> None:
        """Another file in the place of the one there is."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.file)

    def switch(self, mode: str) -> None:
        """Return when new requests are served in this mode."""
        self.configure(f"mode: {mode}\nupstream: {self.upstream.address}\n")
        self.wait_for_mode(mode)

    def wait_for_mode(self, mode: str) -> None:
        client = RegistryClient(self.server)
        deadline = time.monotonic() + SWITCH_S
        while client.request("GET", "/v2/").headers["sluice-mode"] != mode:
            assert time.monotonic() < deadline, self.server.log.read_text()[-2000:]
            time.sleep(0.02)
        client.close()

    def wait_for_log(self, text: str) -> None:
        deadline = time.monotonic() + SWITCH_S
        while text not in self.server.log.read_text():
            assert time.monotonic() < deadline, self.server.log.read_text()[-2000:]
            time.sleep(0.05)

    def wait_for_metric(self, line: str) -> None:
        deadline = time.monotonic() + SWITCH_S
        while not self.metric(line):
            assert time.monotonic() < deadline, self.server.operations("/metrics")[1]
            time.sleep(0.05)

    def metric(self, line: str) -> bool:
        """Whether the metrics have this line."""
        return line in self.server.operations("/metrics")[1].splitlines()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """In Local mode, with the image pushed; the upstream has it too."""
    with ExitStack() as stack:
        content = UpstreamContent()
        upstream = stack.enter_context(UpstreamServer(content))
        file = tmp_path / "sluice.yaml"
        file.write_text("mode: local\n")
        server = stack.enter_context(SluiceServer(tmp_path / "data", "--config", str(file)))
        client = RegistryClient(server)
        client.push_image("team/app", "v1", [LARGE, SMALL])
        client.close()
        content.push_image("team/app", "v1", [LARGE, SMALL])
        yield Site(server, file, upstream)


class Held(threading.Thread):
    """Reads the first bytes of a blob, stands still until it is let go, and reads the rest."""

    def __init__(self, server: SluiceServer, data: bytes) -> None:
        super().__init__()
        self._server = server
        self._digest = digest_of(data)
        self.stands = threading.Event()
        self.go = threading.Event()
        self.seen: tuple[int, str | None, str | None] = (0, None, None)
        self.start()
        assert self.stands.wait(60)

    def run(self) -> None:
        connection = RegistryClient(self._server).connect()
        try:
            connection.request("GET", f"/v2/team/app/blobs/{self._digest}")
            response = connection.getresponse()
            hasher = hashlib.sha256(response.read(MIB))
            self.stands.set()
            self.go.wait(120)
            while data := response.read(MIB):
                hasher.update(data)
            whole = f"sha256:{hasher.hexdigest()}" == self._digest
            self.seen = (response.status if whole else -1, response.headers["sluice-mode"], None)
        finally:
            self.stands.set()
            connection.close()

    def finish(self) -> tuple[int, str | None]:
        """Let go; status (-1: other bytes) and mode."""
        self.go.set()
        self.join(120)
        return self.seen[:2]


class Crowd:
    """Clients that pull all the time; ``failed`` has what was not right."""

    def __init__(self, server: SluiceServer) -> None:
        self._server = server
        self._over = threading.Event()
        self.served: Counter[str] = Counter()
        self.failed: list[object] = []
        self._threads = [threading.Thread(target=self._pull, args=(number,)) for number in range(WORKERS)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Answers so far."""
        return sum(self.served.values())

    def _pull(self, number: int) -> None:
        client = RegistryClient(self._server)
        wanted = ["manifests/v1", f"blobs/{digest_of(SMALL)}", "tags/list", "manifests/v1"]
        if number == 0:
            wanted.append(f"blobs/{digest_of(LARGE)}")
        try:
            while not self._over.is_set():
                for path in wanted:
                    answer = client.request("GET", f"/v2/team/app/{path}")
                    whole = not path.startswith("blobs/") or path.endswith(digest_of(answer.body))
                    if answer.status != 200 or not whole:
                        self.failed.append((path, answer.status, answer.body[:300]))
                    self.served[answer.headers.get("sluice-mode", "none")] += 1
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
        finally:
            client.close()

    def finish(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def switch_round(site: Site, crowd: Crowd, number: int) -> list[tuple[str, tuple[int, str | None]]]:
    """Once round all modes with readers held at every switch; what each reader saw beside the mode it began in."""
    seen: list[tuple[str, tuple[int, str | None]]] = []
    before = "local"
    for mode in ROUND:
        readers = [Held(site.server, LARGE) for _ in range(HELD_AT_A_SWITCH)]
        if before == "proxy":
            cold = random.Random(100 + number).randbytes(64 * MIB)  # held by nobody yet: a fill that goes on
            site.upstream.content.hold_blob("team/app", cold)
            readers.append(Held(site.server, cold))
        site.switch(mode)
        assert mode == manifest_mode(site)
        at = crowd.served[mode]
        while crowd.served[mode] < at + 50 and not crowd.failed:
            time.sleep(0.02)
        seen += [(before, reader.finish()) for reader in readers]
        before = mode
    return seen


def manifest_mode(site: Site) -> str:
    """Which wiring answers for a manifest that every wiring has in memory by now."""
    client = RegistryClient(site.server)
    answer = client.request("GET", "/v2/team/app/manifests/v1")
    client.close()
    assert 200 == answer.status
    return answer.headers["sluice-mode"]


def run_rounds(site: Site, requests: int) -> None:
    crowd = Crowd(site.server)
    seen: list[tuple[str, tuple[int, str | None]]] = []
    rounds = 0
    try:
        while (rounds == 0 or crowd.count < requests) and not crowd.failed:
            rounds += 1
            seen += switch_round(site, crowd, rounds)
    finally:
        crowd.finish()
    assert [] == crowd.failed
    assert [(before, (200, before)) for before, _ in seen] == seen
    assert len(seen) == rounds * (3 * HELD_AT_A_SWITCH + 1)
    assert set(ROUND) == set(crowd.served)
    assert crowd.count >= requests
    assert "Traceback" not in site.server.log.read_text()


def test_switching_under_load(site: Site, long_form: bool) -> None:
    """Local, Proxy, Direct and Local again: no request fails, and each is served by the wiring it began on."""
    run_rounds(site, 5000 if long_form else 1000)


def test_what_was_cached_stays_in_local_mode(site: Site) -> None:
    """An image that Proxy mode fetched is Local mode's own afterwards, and the upstream is not needed."""
    digest = str(site.upstream.content.push_image("other/app", "v1", [SMALL, b"other"]))
    client = RegistryClient(site.server)
    assert 404 == client.request("GET", "/v2/other/app/manifests/v1").status
    site.switch("proxy")
    assert digest == client.request("GET", "/v2/other/app/manifests/v1").headers["docker-content-digest"]
    assert b"other" == client.request("GET", f"/v2/other/app/blobs/{digest_of(b'other')}").body
    site.switch("local")
    site.upstream.stop()
    found = client.request("GET", "/v2/other/app/manifests/v1")
    assert (200, digest, "local") == (
        found.status,
        found.headers["docker-content-digest"],
        found.headers["sluice-cache"],
    )
    assert b"other" == client.request("GET", f"/v2/other/app/blobs/{digest_of(b'other')}").body
    client.push_image("other/app", "v2")
    client.close()


def test_a_fetch_that_nobody_waits_for_ends_well(site: Site) -> None:
    """Its reader has left and the mode is another one: it is brought to its end, and the blob is here."""
    data = random.Random(9).randbytes(3 * MIB)
    site.upstream.content.hold_blob("team/app", data)
    site.upstream.faults = [Stall(2 * MIB, when=blobs)]
    site.switch("proxy")
    connection = RegistryClient(site.server).connect()
    connection.request("GET", f"/v2/team/app/blobs/{digest_of(data)}")
    assert data[:MIB] == connection.getresponse().read(MIB)
    connection.close()
    site.switch("local")
    site.upstream.faults = []
    site.wait_for_log("the last request and fetch of the proxy mode before it have ended")
    client = RegistryClient(site.server)
    found = client.request("GET", f"/v2/team/app/blobs/{digest_of(data)}")
    client.close()
    assert (200, "local", data) == (found.status, found.headers["sluice-mode"], found.body)


def test_fetches_of_two_configurations_are_counted_together(site: Site) -> None:
    """One that began before the change and one that began after it are two, and then none."""
    datas = [random.Random(seed).randbytes(3 * MIB) for seed in (10, 11)]
    for data in datas:
        site.upstream.content.hold_blob("team/app", data)
    site.upstream.faults = [Stall(2 * MIB, when=blobs)]
    proxy = f"mode: proxy\nupstream: {site.upstream.address}\n"
    for number, settings in enumerate(["", "cache: {tag_fresh_s: 3600}\n"]):
        site.configure(proxy + settings)
        site.wait_for_log("in force now: mode" if not number else "in force now: cache.tag_fresh_s")
        with contextlib.closing(RegistryClient(site.server).connect()) as connection:
            connection.request("GET", f"/v2/team/app/blobs/{digest_of(datas[number])}")
            assert datas[number][:MIB] == connection.getresponse().read(MIB)
        site.wait_for_metric(f"sluice_cache_fills_active {number + 1}.0")
    site.upstream.faults = []
    site.wait_for_metric("sluice_cache_fills_active 0.0")
    assert site.metric("sluice_cache_fills_queued 0.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode: proxy\n", "mode is 'proxy' (file {file}): needs upstream.address"),
        (
            "mode: proxy\nupstream: http://r.example/../x\n",
            "upstream.address is 'http://r.example/../x' (file {file}):",
        ),
        ("mode: proxi\n", "mode is 'proxi' (file {file}): must be 'local', 'proxy' or 'direct'"),
        ("mode: [\n", "config file {file} is not YAML"),
        ("mode: proxy\nupstream: {{address: r.example, ca: /nowhere}}\n", "/nowhere"),
        ("mode: proxy\nupstream: http://127.0.0.1:{port}\n", "which is this server's own listen"),
        ("mode: direct\nupstream: http://localhost:{port}\n", "which is this server's own listen"),
    ],
)
def test_an_invalid_file_changes_nothing(site: Site, text: str, message: str) -> None:
    """It is said what is wrong, and a metric says so; the next valid file counts again."""
    site.switch("direct")
    assert site.metric("sluice_config_valid 1.0")
    site.configure(text.format(port=site.server.port))
    site.wait_for_log("error: the configuration stays as it is: ")
    assert message.format(file=site.file) in site.server.log.read_text()
    assert site.metric("sluice_config_valid 0.0")
    assert site.metric('sluice_mode{mode="direct"} 1.0')
    site.wait_for_mode("direct")
    site.switch("proxy")
    assert site.metric("sluice_config_valid 1.0")
    assert site.metric('sluice_mode{mode="proxy"} 1.0')


def test_what_needs_a_restart_is_named(site: Site) -> None:
    """The mode changes at once, and the rest is a warning."""
    site.configure(f"mode: direct\nupstream: {site.upstream.address}\nlimits: {{uploads: 5, drain_s: 7}}\n")
    site.wait_for_mode("direct")
    site.wait_for_log("warning: changed, and in force only after a restart: limits.uploads, limits.drain_s")


def test_a_flag_wins_over_the_new_file_too(tmp_path: Path) -> None:
    """What was given on the command line stays."""
    file = tmp_path / "sluice.yaml"
    file.write_text("log: {level: info}\n")
    with SluiceServer(tmp_path / "data", "--config", str(file), "--mode", "local") as server:
        file.write_text("mode: direct\nupstream: http://r.example\nlog: {level: debug}\n")
        here = Site(server, file, UpstreamServer(UpstreamContent()))
        here.wait_for_log("in force now: upstream.address")
        here.wait_for_mode("local")


def test_sighup_has_the_file_read(site: Site) -> None:
    """Also where the file does not look changed: of the same length and age, in the same place."""
    upstream = f"upstream: {site.upstream.address}\n"
    site.configure(f"mode: direct\n{upstream}")
    site.wait_for_mode("direct")
    before = site.file.stat()
    with site.file.open("r+") as stream:
        stream.write(f"mode: proxy \n{upstream}")
    os.utime(site.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.kill(site.server.pid, signal.SIGHUP)
    site.wait_for_mode("proxy")


def test_a_cache_takes_new_settings(site: Site) -> None:
    """What is configured of it holds for the next request: a tag that was fresh is asked about."""
    first = f"mode: proxy\nupstream: {site.upstream.address}\ncache: {{tag_fresh_s: 3600}}\n"
    site.configure(first)
    site.wait_for_mode("proxy")
    client = RegistryClient(site.server)
    for _ in range(2):
        assert 200 == client.request("GET", "/v2/team/app/manifests/v1").status
    asked = len(site.upstream.requests)
    site.configure(first.replace("3600", "0, revalidate: first"))
    site.wait_for_log("in force now: cache.tag_fresh_s, cache.revalidate")
    answer = client.request("GET", "/v2/team/app/manifests/v1")
    client.close()
    assert (200, "upstream") == (answer.status, answer.headers["sluice-cache"])
    assert len(site.upstream.requests) > asked

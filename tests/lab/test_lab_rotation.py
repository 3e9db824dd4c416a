"""A CA is replaced under load: every pull goes on, and afterwards the old one is worth nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lab.clusters import wait_until
from lab.commands import Place, raised
from lab.isolated import needs_lab
from sluice.errors import PullFailed
from sluice.lab.cri import Runtime
from sluice.lab.laboratory import VIRTUAL, Laboratory
from sluice.lab.rotation import rotate
from sluice.lab.topology import Machine
from sluice.pki.cluster import ClusterPki, Purpose

pytestmark = needs_lab
HELLO = f"{VIRTUAL}/lab/hello:1"
PULL_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with raised(tmp_path_factory.mktemp("lab"), "--control-planes", "2") as made:
        yield made


class Load:
    """Pulls on a node, one after the other, each of an image that is not there. Leaving ends it."""

    def __init__(self, lab: Laboratory, node: Machine) -> None:
        self.pulled = 0
        self.failures: list[str] = []
        self._socket = lab.socket(node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with Runtime(self._socket) as runtime:
            while not self._stop.is_set():
                try:
                    runtime.pull(HELLO, timeout_s=PULL_S)
                    self.pulled += 1
                except PullFailed as error:
                    self.failures.append(str(error))
                runtime.remove(HELLO)

    def wait(self) -> None:
        """Until a pull that begins from now on has ended well, or any has failed."""
        wanted = self.pulled + 2  # the one that is going on began before
        wait_until(lambda: self.pulled >= wanted or self.failures != [])

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("purpose", [Purpose.SERVERS, Purpose.NODES])
def test_rotated_under_load(place: Place, purpose: Purpose) -> None:
    """No pull fails on any node, each pulls again after every step, and in the end all trust the new CA alone."""
    lab = place.open()
    before = ClusterPki(lab.directory.pki / "cluster").bundle(purpose)
    told: list[str] = []
    loads = [Load(lab, node) for node in lab.topology.nodes]

    def say(line: str) -> None:
        told.append(line)
        for load in loads:
            load.wait()

    with loads[0], loads[1], loads[2]:
        rotate(lab, purpose, say)
    assert [[], [], []] == [load.failures for load in loads]
    assert 3 == len(told)
    after = ClusterPki(lab.directory.pki / "cluster").bundle(purpose)
    assert before not in after
    assert place.call("pull", "worker-1", "lab/pause:1").code == 0
    asked = place.call("exec", "worker-1", "curl", "-sS", f"https://{VIRTUAL}/v2/lab/hello/tags/list")
    assert (0, True) == (asked.code, "lab/hello" in asked.out)

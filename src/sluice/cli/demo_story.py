"""The demo's story: an image comes through the cache, its upstream dies, and the image still comes.

Pulls are made by an unpatched containerd whose storage is new and empty each time, under a name that never changes.
Where every answer came from is what the cache's own metrics and headers say.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from sluice.cli.demo_containerd import private_containerd
from sluice.cli.demo_registry import Answer, RunningRegistry, origins_between
from sluice.errors import Unavailable
from sluice.lab.images import build_image, find_busybox, machine_architecture
from sluice.lab.programs import run_step

REPOSITORY, TAG = "demo/hello", "1"
UNSEEN = "demo/news"
"""Holds an image that was not pulled through the cache before its upstream died: its tag is new each time."""
NAME_IN_CLUSTER = "registry.sluice.internal:5001"
TAG_FRESH_S = 1.0
"""For how long the demo's cache serves a tag without asking, in seconds."""
RETURN_S = 60.0
"""How long it may take until the cache notices that its upstream is back, in seconds."""
NOT_ASKED = frozenset({502, 503, 504})
ORIGINS = ("stale", "started", "joined", "upstream", "bypass", "hit")


@dataclass(slots=True)
class Story:
    """The cache, the registry behind it, and what has happened so far: ``(what, how it went)``."""

    home: Path
    cache: RunningRegistry
    upstream: RunningRegistry
    digest: str = ""
    told: list[tuple[str, str]] = field(default_factory=list)

    def tell(self) -> None:
        """All of it. Raises Unavailable where something did not go as it should."""
        unseen = f"{UNSEEN}:{time.strftime('%Y%m%d-%H%M%S')}"
        self._push(unseen)
        self._pull("pulled and ran it through the cache", f"{REPOSITORY}:{TAG}")
        time.sleep(TAG_FRESH_S)
        self.upstream.cut()
        say("cut the upstream: killed, it answers nobody")
        self._pull("upstream down, by tag: pulled and ran it", f"{REPOSITORY}:{TAG}")
        self._pull("upstream down, by digest: pulled and ran it", f"{REPOSITORY}@{self.digest}")
        self._note("upstream down, the tag's header", self._look(f"{REPOSITORY}/manifests/{TAG}", frozenset({200})))
        path = unseen.replace(":", "/manifests/")
        self._note("upstream down, an image that is not here", self._look(path, NOT_ASKED))
        self.upstream.restart()
        say("started the upstream again")
        self._note("upstream back, the same image", self._await(path))

    def _push(self, unseen: str) -> None:
        layout = self.home / "image"
        shutil.rmtree(layout, ignore_errors=True)
        self.digest = build_image(layout, find_busybox(), TAG)
        say(f"built an image for linux/{machine_architecture()} and friends: {self.digest}")
        place = self.upstream.place
        copy = ["skopeo", "--insecure-policy", "copy", "--all", "--dest-cert-dir", str(place.certificates)]
        with timed(f"pushed it with skopeo into the upstream, {place.address}/{REPOSITORY}:{TAG}"):
            for reference in (f"{REPOSITORY}:{TAG}", unseen):
                run_step([*copy, f"oci:{layout}:{TAG}", place.image(reference)])

    def _pull(self, what: str, reference: str) -> None:
        before = self.cache.origins()
        if os.geteuid() == 0:
            with timed(f"{what} as {NAME_IN_CLUSTER}/{reference}"):
                self._pull_and_run(reference)
        else:
            what = what.replace("pulled and ran", "pulled")
            with timed(f"{what} with skopeo, for containerd cannot run without root (repeat with sudo to see it)"):
                self._copy(reference)
        outcome = origins_between(before, self.cache.origins(), ORIGINS)
        say(f"  its answers: {outcome}")
        self.told.append((what, outcome))

    def _pull_and_run(self, reference: str) -> None:
        place, image = self.cache.place, f"{NAME_IN_CLUSTER}/{reference}"
        with private_containerd(self.home / "containerd.log") as containerd:
            containerd.redirect(NAME_IN_CLUSTER, place.url, place.ca)
            containerd.pull(image)
            for line in containerd.run(image).splitlines():
                say(f"  | {line}")

    def _copy(self, reference: str) -> None:
        place = self.cache.place
        with tempfile.TemporaryDirectory() as target:
            copy = ["skopeo", "--insecure-policy", "copy", "--src-cert-dir", str(place.certificates)]
            run_step([*copy, place.image(reference), f"dir:{target}"])

    def _look(self, path: str, expected: frozenset[int]) -> Answer:
        answer = self.cache.look(path)
        if answer.status not in expected:
            raise Unavailable(f"the cache answers {answer} for {path}: see {self.cache.place.log}")
        return answer

    def _await(self, path: str) -> Answer:
        """The cache asks a dead upstream again by itself, now and then."""
        deadline = time.monotonic() + RETURN_S
        while (answer := self.cache.look(path)).status in NOT_ASKED and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._look(path, frozenset({200})) if answer.status != 200 else answer

    def _note(self, what: str, answer: Answer) -> None:
        self.told.append((what, str(answer)))
        say(f"{what}: {answer}")


@contextlib.contextmanager
def timed(done: str) -> Iterator[None]:
    """Say ``done`` and how long the block took."""
    started = time.monotonic()
    yield
    say(f"{done}: {time.monotonic() - started:.2f} s")


def say(text: str) -> None:
    """One line of the story, on stderr."""
    click.echo(f"demo: {text}", err=True)

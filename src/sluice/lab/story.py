"""What ``make run`` tells: a cluster pulls, a replica dies in the middle of a layer, the upstream dies for good.

Told on a laboratory that is up, by whatever shows lines to a person. Nothing here believes that it worked because it
should have: where every byte of the layer came from is counted from the runtime's files and the replicas' logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sluice.errors import Unavailable
from sluice.lab.evidence import Sending, received, sendings, sent_by_victim
from sluice.lab.scene import LabScene, Published

LARGE_BYTES = 256 << 20
"""Long enough that there is a middle: about a second on its way."""
FIRST_BYTES = 8 << 20
"""How much of the layer has come before the replica is struck."""
TRIES = 3
"""How often a layer may be through before its replica could be struck."""
PULL_S = 120.0
LOG_S = 5.0
POLL_S = 0.02
MIB = 1 << 20

Strike = Callable[[str], object]
"""Takes a replica away, by its name."""


@dataclass(frozen=True, slots=True)
class Happened:
    """A row of the table at the end."""

    what: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Survived:
    """A pull that lost its replica. ``sent`` says how many bytes of the layer came from each, the victim's first.

    ``struck_at`` is when that was (``time.time``), ``seconds`` how long the pull took.
    """

    node: str
    victim: str
    sent: Mapping[str, int]
    struck_at: float
    seconds: float


@dataclass(slots=True)
class Story:
    """Tells itself line by line to ``say``; ``happened`` is the table."""

    scene: LabScene
    say: Callable[[str], None]
    happened: list[Happened] = field(default_factory=list)

    def tell(self) -> None:
        """All of it. Raises Unavailable or PullFailed where something did not go as it should."""
        for node in self.scene.workers:
            self._pull_and_run(node)
        survived, image = self._lose_a_replica(self.scene.workers[0])
        shares = ", ".join(f"{count / MIB:.1f} MiB from {name}" for name, count in survived.sent.items())
        self._note(f"{survived.node}: pulled while {survived.victim} was killed", shares, survived.seconds)
        started = time.monotonic()
        self.scene.heal(survived.victim)
        self._note(f"{survived.victim}: started again", "ready", time.monotonic() - started)
        self._lose_the_upstream(self.scene.workers[-1], image)

    def _pull_and_run(self, node: str) -> None:
        started = time.monotonic()
        self.scene.pull(node, self.scene.hello)
        pulled = time.monotonic() - started
        lines = self.scene.run(node, self.scene.hello).strip().splitlines()
        for line in lines:
            self.say(f"  | {line}")
        self._note(f"{node}: pulled {self.scene.hello} and ran it", lines[0] if lines else "no word", pulled)

    def _lose_the_upstream(self, node: str, image: Published) -> None:
        """What is cached is pulled by its tag by a node that has never had it, and nobody notices."""
        self.scene.kill_upstream()
        started = time.monotonic()
        self.scene.pull(node, image.reference, PULL_S)
        outcome = f"{image.size / MIB:.0f} MiB from the caches"
        self._note(f"{node}: pulled while the upstream was dead", outcome, time.monotonic() - started)
        self.scene.heal_upstream()

    def _lose_a_replica(self, node: str) -> tuple[Survived, Published]:
        for attempt in range(1, TRIES + 1):
            image = self.scene.publish(f"lab/large-{attempt}", LARGE_BYTES, attempt)
            self.say(f"published {image.reference} with a layer of {image.size / MIB:.0f} MiB")
            survived = survive(self.scene, node, image, self.scene.kill)
            if survived is not None:
                return survived, image
            self.say("that layer was through before its replica was killed: once more")
        raise Unavailable(f"{TRIES} times the layer was through before its replica could be killed")

    def _note(self, what: str, outcome: str, seconds: float) -> None:
        self.happened.append(Happened(what, outcome, seconds))
        self.say(f"{what}: {outcome} ({seconds:.2f} s)")


def survive(scene: LabScene, node: str, image: Published, strike: Strike) -> Survived | None:
    """Pull, and strike the replica that sends the big layer in the middle of it; None where that came too late.

    Raises PullFailed where the pull failed, which it must not.
    """
    before = {name: len(_read(log)) for name, log in scene.logs().items()}
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        pulling = pool.submit(scene.pull, node, image.reference, PULL_S)
        victim = find_sender(scene, node, image, pulling)
        struck_at = time.time()
        if victim is not None:
            strike(victim)
        pulling.result()
        seconds = time.monotonic() - started
    if victim is None:
        return None
    sent = _await_shares(scene, victim, image, before)
    if sent is None:
        scene.heal(victim)
        return None
    return Survived(node, victim, sent, struck_at, seconds)


def find_sender(scene: LabScene, node: str, image: Published, pulling: Future[str]) -> str | None:
    """The one replica that is in the middle of sending a layer; None where the layer came to its end before."""
    place = scene.place(node)
    while not pulling.done() and received(place, image.layer) < FIRST_BYTES:
        time.sleep(POLL_S / 10)
    while not pulling.done() and received(place, image.layer) < image.size:
        busy = [name for name, streams in scene.streams(node).items() if streams]
        if len(busy) == 1:
            return busy[0]
        time.sleep(POLL_S)
    return None


def _await_shares(
    scene: LabScene, victim: str, image: Published, before: Mapping[str, int]
) -> Mapping[str, int] | None:
    """How much of the layer came from whom; None where the victim had sent all of it, or nothing.

    ``before`` is how long the logs were; a log is written a moment after the answer.
    """
    deadline = time.monotonic() + LOG_S
    while True:
        others: dict[str, list[Sending]] = {
            name: sendings(_read(log)[before[name] :], image.layer)
            for name, log in scene.logs().items()
            if name != victim
        }
        of_victim = sent_by_victim(image.size, [one for found in others.values() for one in found])
        if 0 < of_victim < image.size:
            rest = {name: sum(one.sent for one in found) for name, found in others.items() if found}
            return {victim: of_victim, **rest}
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)


def _read(log: Path) -> str:
    return log.read_text("utf-8", "replace") if log.exists() else ""

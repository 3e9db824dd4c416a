"""The agent of a node: follows its layout, keeps files and balancer as it says, and says how things are.

``sluice node run``. One thread that sleeps until something happens to the layout, the secrets, containerd's
configuration or the balancer's process, or SIGHUP comes; the balancer is asked every few seconds, the files that were
written are looked at every few minutes. What cannot be applied changes nothing: the last good state stands and the
status says why. The last good layout is on disk, so a node starts without anybody to ask. Nothing that serves images
depends on the agent: HAProxy runs on when it ends or dies.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sluice.cluster.documents import dump_document, load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets, Paths
from sluice.cluster.status import Finding, NodeStatus, ReplicaStatus
from sluice.errors import ConfigInvalid, NodeRefused, SluiceError
from sluice.node.apply import adopt_state, agent_locked, apply_intent, intend, sweep_state
from sluice.node.bell import Bell
from sluice.node.certificate_check import check_certificate
from sluice.node.haproxy import HUNG_S, Balancer
from sluice.node.haproxy_state import BalancerState
from sluice.node.preflight import look_at_runtimes, uses_containerd
from sluice.node.programs import NodePrograms
from sluice.node.record import STATUS, read_layout, read_secrets
from sluice.node.status import describe_replicas, judged, says_the_same
from sluice.pki.durable import PUBLIC_MODE, write_durably

POLL_S = 2.0
"""Between two looks at files that nobody watches, and the shortest time between two of what time alone makes due."""
LOOK_S = 30.0
"""Between two looks at files that are watched: at what is not told, such as a mount over them."""
BALANCER_S = 15.0
"""Between two questions to the balancer; its end is noticed at once."""
AGAIN_S = 30.0
"""After what failed, and while there are findings."""
RESCAN_S = 300.0
HEARTBEAT_S = 60.0
TOLD_S = 3600.0
"""How long a balancer that hung stays in the status after it has been started anew."""

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent looks. ``state``: of the layout's paths where None. ``prefix`` goes before HAProxy's command."""

    layout: Path
    secrets: Path | None = None
    state: Path | None = None
    prefix: Sequence[str] = ()


class Agent:
    """Of one node. ``say`` takes a line for people; all times come from ``clock``, in seconds of the epoch."""

    def __init__(self, place: Place, say: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._place = place
        self._say = say
        self._clock = clock
        self._state = (place.state or _state_of(place.layout)).absolute()
        self._stamps: tuple[Stamp, ...] = ()
        self._containerd: Stamp = None
        self._applied: NodeLayout | None = None
        self._wanted: int | None = None
        self._errors: dict[str, str] = {}
        self._refusals: tuple[Finding, ...] = ()
        self._preflight: tuple[Finding, ...] = ()
        self._hung: tuple[Finding, ...] = ()
        self._hung_until = 0.0
        self._files_at = self._follow_at = self._look_at = self._beat_at = self._ticked = 0.0
        self._balancer_at = self._closely_at = 0.0
        self._balancer: Balancer | None = None
        self._seen: BalancerState | None = None
        self._status: NodeStatus | None = None
        self._told: tuple[object, ...] = ()  # what the last status was made of
        self._written: Stamp = None  # its file, as long as nobody else has touched it
        self._unwritten = ""  # why it could not be written
        self._bell = Bell()
        self._stopped = self._again = False

    def stop(self) -> None:
        """Have ``run`` return soon; for signal handlers too."""
        self._stopped = True
        self._bell.ring()

    def look_again(self) -> None:
        """Have it look at everything now; for signal handlers too."""
        self._again = True
        self._bell.ring()

    def close(self) -> None:
        """After the last ``tick``, where it is not ``run``."""
        self._bell.close()

    def run(self) -> None:
        """Until ``stop``. Raises NodeRefused where another agent runs."""
        adopt_state(self._state)
        with contextlib.closing(self), agent_locked(self._state):
            sweep_state(self._state)
            self._guard("layout", self._remember, self._clock())
            self._bell.follow(self._files())  # what that needs is loaded now
            gc.freeze()  # what has been loaded stays, and a collection need not walk through it each time
            while not self._stopped:
                again = self._again
                if again:  # never put back without having been seen: a signal may come between any two steps
                    self._again = False
                self.tick(everything=again)
                self._bell.sleep(self._pause())
            self._write(self._clock(), running=False)

    def tick(self, *, everything: bool = False) -> None:
        """Whatever is due. Never raises for what the node or its documents are like."""
        now = self._clock()
        if now < self._ticked:  # the clock was put back: what was due then would be due long after
            self._files_at = self._follow_at = self._look_at = 0.0
            self._balancer_at = self._closely_at = self._beat_at = 0.0
            self._hung_until = min(self._hung_until, now + TOLD_S)
            self._told = ()  # and the status has a time that is to come
        self._ticked = now
        if everything or self._bell.stirred or now >= self._files_at:
            self._look_at_files(now, everything=everything)
        if now >= self._follow_at:
            self._follow_at = now + AGAIN_S
            self._guard("layout", self._follow, now)
        if now >= self._look_at:
            self._guard("containerd", self._examine, now)
        if now >= self._balancer_due():
            self._balancer_at = now + BALANCER_S
            self._guard("balancer", self._keep_balancer, now)
            self._bell.watch(self._seen.pid if self._seen is not None else None)
        if self._has_news():
            self._write(now, running=True)
        elif now >= self._beat_at:
            self._beat(now)

    def _pause(self) -> float:
        """Seconds to the next thing that is due, as far as time goes."""
        due = min(self._files_at, self._follow_at, self._look_at, self._balancer_due(), self._beat_at)
        return max(POLL_S, due - self._clock())

    def _balancer_due(self) -> float:
        """Sooner where its process has ended, but not at once: one that was started just now may have ended again."""
        return self._balancer_at - BALANCER_S + POLL_S if self._bell.gone else self._balancer_at

    def _look_at_files(self, now: float, *, everything: bool) -> None:
        """Where one has changed, what comes of it is due now."""
        followed = self._bell.follow(self._files())  # before they are looked at: nothing is missed in between
        self._files_at = now + (LOOK_S if followed else POLL_S)
        stamps = tuple(map(_stamp, self._documents_at()))
        if everything or stamps != self._stamps:
            self._stamps = stamps
            self._follow_at = 0.0
        containerd = _stamp(Path(self._applied.paths.containerd_config)) if self._applied is not None else None
        if everything or containerd != self._containerd:
            self._containerd = containerd
            self._look_at = 0.0

    def _documents_at(self) -> Iterator[Path]:
        yield self._place.layout
        if self._place.secrets is not None:
            yield self._place.secrets

    def _files(self) -> Iterator[Path]:
        """Those of which a change is to be seen at once."""
        yield from self._documents_at()
        if self._applied is not None and uses_containerd(self._applied):
            yield Path(self._applied.paths.containerd_config)

    def _guard(self, part: str, work: Callable[[float], str | None], now: float) -> None:
        """Do it; what it returns or raises is what is wrong with ``part``, until the next time."""
        try:
            problem = work(now)
        except SluiceError as error:
            problem = error.message
        except OSError as error:
            problem = str(error)
        if problem is None:
            if self._errors.pop(part, None) is not None:
                self._say(f"{part}: all is well again")
        elif self._errors.get(part) != problem:
            self._errors[part] = problem
            self._say(f"{part}: {problem}")

    def _follow(self, now: float) -> str | None:
        layout, secrets, problem = self._documents()
        self._refusals = ()
        if layout is None:
            return problem
        if Path(layout.paths.state).resolve() != self._state.resolve():
            return f"paths.state is {layout.paths.state}, and this agent keeps {self._state}: start it anew"
        programs = NodePrograms(layout, self._place.prefix)
        try:
            plan = apply_intent(intend(layout, secrets), programs)
        except NodeRefused as refused:
            self._refusals = _refusals(refused)
            raise
        finally:
            self._tell_hung(programs, now)
        if plan.steps or self._applied is None or self._applied.version != layout.version:
            self._say(f"version {layout.version} is applied, mode {layout.mode}")
        self._applied = layout
        self._follow_at = min(now + RESCAN_S, plan.due_at or now + RESCAN_S)
        self._files_at = self._look_at = self._balancer_at = self._closely_at = 0.0
        return problem

    def _remember(self, now: float) -> str | None:
        self._applied = read_layout(self._state)
        return None

    def _documents(self) -> tuple[NodeLayout | None, NodeSecrets | None, str | None]:
        """What is to be applied, or the last good where that cannot be read, and why it is not what was asked for."""
        problem: str | None = None
        layout, secrets = None, None
        try:
            layout = load_document(NodeLayout, self._place.layout)
            self._wanted = layout.version
            secrets = None if self._place.secrets is None else load_document(NodeSecrets, self._place.secrets)
        except ConfigInvalid as error:
            problem = error.message
            layout = read_layout(self._state)
        return layout, secrets or read_secrets(self._state), problem

    def _examine(self, now: float) -> str | None:
        """Look at the runtimes, whether they take what is written for them, and at the certificate."""
        self._preflight = ()
        if self._applied is not None:
            self._preflight = look_at_runtimes(self._applied)
        # A certificate is due for a month: nothing to ask containerd every half minute for.
        self._look_at = now + (AGAIN_S if self._preflight else RESCAN_S)
        if self._applied is not None:
            self._preflight += check_certificate(self._applied, read_secrets(self._state), now)
        return None

    def _keep_balancer(self, now: float) -> str | None:
        if now < self._closely_at and self._is_as_before():
            return None
        self._closely_at = now + RESCAN_S
        layout = self._applied
        before, self._seen = self._seen, None
        if layout is None:
            return None
        programs = NodePrograms(layout, self._place.prefix)
        balancer = self._balancer = Balancer.of(layout, self._place.prefix)
        if "balancer" not in layout.sources:
            self._balancer_at = now + RESCAN_S
            programs.settle()
            return None
        if now >= self._hung_until:
            self._hung = ()
        seen = balancer.state()
        if programs.runs_balancer and not seen.running:
            self._seen = seen  # what there is to say should it not start
            try:
                if programs.settle():  # or it was busy for a moment only
                    self._say("the balancer was started")
            finally:
                self._tell_hung(programs, now)
            seen = balancer.state()
        if before is not None and says_the_same(seen, before):
            seen = replace(before, fingerprint=seen.fingerprint)
        self._seen = seen
        if programs.tells_balancer:
            self._balancer_at = now + AGAIN_S  # where this raises: what it refused it will refuse again
            if programs.settle():
                self._say("the balancer in the pod has taken the configuration over")
                self._seen = balancer.state()
            self._balancer_at = now + BALANCER_S
        return None

    def _is_as_before(self) -> bool:
        """Whether all was well with the balancer and nothing has changed: what an idle agent asks most, so it touches
        as little as can be."""
        before = self._seen
        if before is None or self._balancer is None or self._bell.gone or self._hung or "balancer" in self._errors:
            return False
        return self._balancer.is_as(before)

    def _tell_hung(self, programs: NodePrograms, now: float) -> None:
        if not programs.ended_hung:
            return
        self._say(f"the balancer answered nothing for {HUNG_S:g} s, and was killed with its workers")
        moment = datetime.fromtimestamp(now, UTC).strftime("%H:%M:%SZ")
        remedy = "nothing is to be done here, unless it happens again: look at what stopped it"
        what = f"answered nothing at {moment}, and was killed to be started anew"
        self._hung = (Finding(what=what, where="the balancer", remedy=remedy),)
        self._hung_until = now + TOLD_S

    def _has_news(self) -> bool:
        """Whether a status would say anything else than the last one: asked far more often than it is so."""
        return self._told != self._facts()

    def _facts(self) -> tuple[object, ...]:
        return (
            self._applied,
            self._wanted,
            tuple(self._errors.values()),
            self._refusals,
            self._preflight,
            self._hung,
            self._seen,
        )

    def _write(self, now: float, *, running: bool) -> None:
        status = self._status = self._described(now, running=running)
        self._beat_at = now + HEARTBEAT_S
        path = self._state / STATUS
        try:
            write_durably(path, dump_document(status), mode=PUBLIC_MODE)
        except SluiceError as error:  # a full disk, for one: the node goes on all the same, and tries again
            self._told, self._written = (), None
            if error.message != self._unwritten:
                self._say(error.message)
            self._unwritten = error.message
        else:
            self._told, self._written, self._unwritten = self._facts(), _stamp(path), ""

    def _beat(self, now: float) -> None:
        """Show that it lives by the age of its document, where that is still the one that it wrote."""
        path = self._state / STATUS
        if self._written is None or _stamp(path) != self._written:
            self._write(now, running=True)
            return
        self._beat_at = now + HEARTBEAT_S
        with contextlib.suppress(OSError):  # the next beat sees what has become of it
            os.utime(path, (now, now))
        self._written = _stamp(path)

    def _described(self, now: float, *, running: bool) -> NodeStatus:
        layout, before = self._applied, self._status
        replicas: tuple[ReplicaStatus, ...] = ()
        if layout is not None and self._seen is not None:
            replicas = describe_replicas(layout, self._seen, before.replicas if before is not None else (), now)
        status = NodeStatus(
            node=layout.node if layout is not None else None,
            mode=layout.mode if layout is not None else None,
            version=layout.version if layout is not None else None,
            wanted=self._wanted,
            healthy=False,
            since=now,
            error="; ".join(self._errors.values()) or None,
            findings=(*self._refusals, *self._preflight, *self._hung),
            balancer=None if self._seen is None else self._seen.running,
            replicas=replicas,
            agent=os.getpid() if running else None,
            time=now,
        )
        return judged(status, before, now)


def _refusals(refused: NodeRefused) -> tuple[Finding, ...]:
    listed = refused.detail if isinstance(refused.detail, list) else []
    return tuple(Finding(what=one["what"], where=one["path"], remedy=one["remedy"], blocking=True) for one in listed)


def _state_of(layout: Path) -> Path:
    """What the layout says, or the usual place where it cannot be read."""
    try:
        return Path(load_document(NodeLayout, layout).paths.state)
    except ConfigInvalid:
        return Path(Paths().state)


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size

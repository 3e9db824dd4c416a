"""What a registry owes its clients, written down by the clients while it is being killed.

Each ``Place`` is a URL that holds one content or nothing. A place has exactly one writer, so that the order of its
writes is known: before a write is sent, its outcome joins what the place may hold (``intend``); once the whole answer
has come, it is all that the place may hold (``settle``). After a kill and a restart, ``inspect`` reads every place and
finishes every upload; whatever is not allowed is a violation, in words.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from faults.wire import Wire
from sluice.testing.client import OCTETS

Content = str | None
"""A digest, or None for nothing there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Something that can be read: ``kind`` is ``blobs`` or ``manifests``, ``name`` a digest or a tag."""

    repository: str
    kind: str
    name: str

    @property
    def path(self) -> str:
        """Its URL's path."""
        return f"/v2/{self.repository}/{self.kind}/{self.name}"


@dataclass(slots=True)
class Session:
    """An upload of ``payload``: the server has confirmed ``confirmed`` bytes, ``sent`` were on their way at most.

    ``ending``: a commit or cancellation was on its way, so the session may be gone.
    """

    repository: str
    path: str
    payload: bytes
    confirmed: int = 0
    sent: int = 0
    ending: bool = False


@dataclass(slots=True)
class Ledger:
    """Everything that was acknowledged or in flight. For any thread."""

    violations: list[str] = field(default_factory=list)
    acknowledged: int = 0
    resumed: int = 0
    _allowed: dict[Place, frozenset[Content]] = field(default_factory=dict)
    _version: dict[Place, int] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def intend(self, place: Place, content: Content) -> None:
        """A write is about to be sent: the place may hold ``content`` from now on."""
        with self._lock:
            self._allowed[place] = self._allowed.get(place, frozenset({None})) | {content}
            self._version[place] = self._version.get(place, 0) + 1

    def settle(self, place: Place, content: Content) -> None:
        """The write was acknowledged: the place holds ``content`` and nothing else."""
        with self._lock:
            self._allowed[place] = frozenset({content})
            self._version[place] = self._version.get(place, 0) + 1
            self.acknowledged += 1

    def holds(self, place: Place) -> frozenset[Content]:
        """What the place may hold now; nothing was ever written where it is unknown."""
        with self._lock:
            return self._allowed.get(place, frozenset({None}))

    def places(self, repository: str = "") -> list[Place]:
        """All places that were ever written (of one repository)."""
        with self._lock:
            return [place for place in self._allowed if repository in {"", place.repository}]

    def open(self, session: Session) -> None:
        """A session was acknowledged."""
        with self._lock:
            self._sessions[session.path] = session

    def end(self, session: Session) -> None:
        """A session's end was acknowledged."""
        with self._lock:
            self._sessions.pop(session.path, None)

    def sessions(self, repository: str = "") -> list[Session]:
        """All sessions that may be open (in one repository)."""
        with self._lock:
            return [one for one in self._sessions.values() if repository in {"", one.repository}]

    def violate(self, what: str) -> None:
        """Write down a broken promise."""
        with self._lock:
            self.violations.append(what)

    def version(self, place: Place) -> int:
        """Grows with each write to the place."""
        with self._lock:
            return self._version.get(place, 0)

    def judge(self, place: Place, status: int, body: bytes, allowed: Iterable[Content] | None) -> Content:
        """Compare an answer to a GET with what is allowed; None for ``allowed``: any whole content or nothing.

        Returns what was seen.
        """
        if status not in {200, 404}:
            self.violate(f"{place.path} answered {status}: {body[:400]!r}")
            return None
        seen = None if status == 404 else f"sha256:{hashlib.sha256(body).hexdigest()}"
        if seen is not None and ":" in place.name and seen != place.name:
            self.violate(f"{place.path} served other bytes: {seen}")
        elif allowed is not None and seen not in allowed:
            self.violate(f"{place.path} holds {seen}, allowed were {sorted(map(str, allowed))}")
        return seen

    def inspect(self, wire: Wire) -> None:
        """Read everything after a restart, with nobody writing; what is seen is what must be there from now on."""
        for place in self.places():
            answer = wire.ask("GET", place.path)
            seen = self.judge(place, answer.status, answer.body, self.holds(place))
            with self._lock:
                self._allowed[place] = frozenset({seen})
        for session in self.sessions():
            self._finish(wire, session)

    def _finish(self, wire: Wire, session: Session) -> None:
        """Ask for the session's offset, send the rest from there and commit: right only if every byte was kept."""
        self.end(session)
        answer = wire.ask("GET", session.path)
        if answer.status == 404 and session.ending:
            return
        if answer.status != 204:
            self.violate(f"acknowledged upload {session.path} answered {answer.status}: {answer.body[:200]!r}")
            return
        offset = held_bytes(answer.headers["range"])
        if not (session.ending or session.confirmed <= offset) or offset > session.sent:
            self.violate(
                f"upload {session.path} stands at {offset}; {session.confirmed} bytes were confirmed,"
                f" {session.sent} sent"
            )
        digest = f"sha256:{hashlib.sha256(session.payload).hexdigest()}"
        rest = session.payload[offset:]
        headers = {"Content-Type": OCTETS, "Content-Range": f"{offset}-{len(session.payload) - 1}"} if rest else {}
        place = Place(session.repository, "blobs", digest)
        self.intend(place, digest)
        answer = wire.ask("PUT", f"{session.path}?digest={digest}", rest, headers)
        if answer.status != 201:
            self.violate(f"upload resumed at {offset} answered {answer.status}: {answer.body[:200]!r}")
            return
        self.settle(place, digest)
        self.resumed += 1


def held_bytes(range_header: str) -> int:
    """The bytes that an upload's ``Range: 0-<last>`` confirms; ``0-0`` stands for none, as the spec's servers do."""
    last = int(range_header.split("-")[1])
    return last + 1 if last else 0

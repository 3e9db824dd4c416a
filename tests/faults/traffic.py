"""Mixed traffic of several clients that keep a ``Ledger``: pushes whole and in chunks, manifests, tags, mounts,
deletes, pulls and garbage collection, until the connection breaks.

Payloads and names come from small fixed pools, so that content is deleted and pushed again, two clients push the same
bytes at the same time, and a check of everything stays short however long it goes on.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from functools import cache

from faults.ledger import Content, Ledger, Place, Session, held_bytes
from faults.wire import BROKEN, Wire
from sluice.errors import SluiceError
from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.client import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, OCTETS, Answer, descriptor
from sluice.testing.server import SluiceServer

WRITERS = 3
TAGS = 4
IMAGES = 4
OPEN_SESSIONS_MAX = 2
SIZES = (1, 700, 4096, 65_536, 70_001, 262_144, 300_007, 600_000, 1_500_000)  # bytes
COLLECT_PAUSE_S = 0.2
CHUNKED = {"Content-Type": OCTETS}


@cache
def payload(number: int) -> bytes:
    """One of the pool's payloads; the same for every writer."""
    return random.Random(number).randbytes(SIZES[number])


@cache
def digest(data: bytes) -> str:
    """``sha256:…``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@cache
def image(number: int) -> tuple[bytes, tuple[int, ...]]:
    """One of the pool's manifests and the numbers of the payloads that it names."""
    used = (number % len(SIZES), (number * 2 + 1) % len(SIZES), (number * 3 + 2) % len(SIZES))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(payload(used[0]), OCI_CONFIG),
        "layers": [descriptor(payload(one), OCI_LAYER) for one in used[1:]],
        "annotations": {"number": str(number)},
    }
    return json.dumps(document).encode(), used


class Writer:
    """One client, the only writer of its two repositories."""

    def __init__(self, number: int, ledger: Ledger, wire: Wire, randomness: random.Random) -> None:
        self.repository = f"crash/writer{number}"
        self.mirror = f"crash/mirror{number}"
        self.ledger = ledger
        self.wire = wire
        self.random = randomness
        self.steps: tuple[tuple[Callable[[], None], int], ...] = (
            (self.push_whole, 4),
            (self.push_in_chunks, 3),
            (self.leave_upload, 1),
            (self.lie, 1),
            (self.push_image, 5),
            (self.mount, 2),
            (self.delete, 3),
            (self.pull, 4),
        )

    def step(self) -> None:
        """Do one thing; raises one of ``BROKEN`` where the server goes away."""
        steps, weights = zip(*self.steps, strict=True)
        self.random.choices(steps, weights)[0]()

    def expect(self, answer: Answer, status: int, what: str) -> bool:
        """Write down any other answer as a violation: nothing here is the client's fault."""
        if answer.status != status:
            self.ledger.violate(f"{what} answered {answer.status} instead of {status}: {answer.body[:300]!r}")
        return answer.status == status

    def push_whole(self) -> None:
        self.push(payload(self.random.randrange(len(SIZES))))

    def push(self, data: bytes) -> None:
        """POST with the digest."""
        place = Place(self.repository, "blobs", digest(data))
        self.ledger.intend(place, place.name)
        answer = self.wire.ask("POST", f"/v2/{self.repository}/blobs/uploads/?digest={place.name}", data, CHUNKED)
        if self.expect(answer, 201, "a push"):
            self.ledger.settle(place, place.name)

    def open_session(self) -> Session | None:
        """POST. What is sent in sessions is never one byte long: a ``Range`` cannot tell that from none."""
        answer = self.wire.ask("POST", f"/v2/{self.repository}/blobs/uploads/")
        if not self.expect(answer, 202, "a session's start"):
            return None
        session = Session(self.repository, answer.headers["location"], payload(self.random.randrange(1, len(SIZES))))
        self.ledger.open(session)
        return session

    def send_chunk(self, session: Session, length: int) -> bool:
        start, chunk = session.sent, session.payload[session.sent : session.sent + length]
        if not chunk:
            return True
        session.sent += len(chunk)
        headers = {**CHUNKED, "Content-Range": f"{start}-{session.sent - 1}"}
        answer = self.wire.ask("PATCH", session.path, chunk, headers)
        if not self.expect(answer, 202, "a chunk"):
            return False
        session.confirmed = held_bytes(answer.headers["range"])
        if session.confirmed != session.sent:
            self.ledger.violate(f"{session.path} confirmed {session.confirmed} of {session.sent} bytes")
        return True

    def push_in_chunks(self) -> None:
        session = self.open_session()
        if session is not None and all(self.send_chunk(session, len(session.payload) // 3 + 1) for _ in range(3)):
            place = Place(self.repository, "blobs", digest(session.payload))
            session.ending = True
            self.ledger.intend(place, place.name)
            if self.expect(self.wire.ask("PUT", f"{session.path}?digest={place.name}"), 201, "a commit"):
                self.ledger.settle(place, place.name)
                self.ledger.end(session)

    def leave_upload(self) -> None:
        """Send a part and go; of the ones left behind, the oldest is cancelled."""
        session = self.open_session()
        if session is not None:
            self.send_chunk(session, self.random.randrange(0, len(session.payload) + 1, 2))
        left = self.ledger.sessions(self.repository)
        if len(left) > OPEN_SESSIONS_MAX:
            left[0].ending = True
            if self.expect(self.wire.ask("DELETE", left[0].path), 204, "a cancellation"):
                self.ledger.end(left[0])

    def lie(self) -> None:
        """Push bytes under a digest that is not theirs: never visible, not even for a moment."""
        data = self.random.randbytes(2000)
        place = Place(self.repository, "blobs", digest(b"lie"))
        self.ledger.intend(place, None)
        answer = self.wire.ask("POST", f"/v2/{self.repository}/blobs/uploads/?digest={place.name}", data, CHUNKED)
        self.expect(answer, 400, "a push with a wrong digest")

    def push_image(self) -> None:
        raw, used = image(self.random.randrange(IMAGES))
        for one in used:
            place = Place(self.repository, "blobs", digest(payload(one)))
            if self.ledger.holds(place) != {place.name}:
                self.push(payload(one))
        name = self.random.choice([digest(raw), *(f"tag{number}" for number in range(TAGS))])
        places = {Place(self.repository, "manifests", digest(raw)), Place(self.repository, "manifests", name)}
        for place in places:
            self.ledger.intend(place, digest(raw))
        answer = self.wire.ask("PUT", f"/v2/{self.repository}/manifests/{name}", raw, {"Content-Type": OCI_MANIFEST})
        if self.expect(answer, 201, "a manifest"):
            for place in places:
                self.ledger.settle(place, digest(raw))

    def mount(self) -> None:
        held = [place for place in self.certain(self.repository) if place.kind == "blobs"]
        if held:
            place = Place(self.mirror, "blobs", self.random.choice(held).name)
            self.ledger.intend(place, place.name)
            query = f"mount={place.name}&from={self.repository}"
            if self.expect(self.wire.ask("POST", f"/v2/{self.mirror}/blobs/uploads/?{query}"), 201, "a mount"):
                self.ledger.settle(place, place.name)

    def certain(self, repository: str) -> list[Place]:
        """Places that certainly hold something."""
        return [place for place in self.ledger.places(repository) if None not in self.ledger.holds(place)]

    def named_blobs(self) -> set[str]:
        """Blobs of a manifest that may be there."""
        places = [place for place in self.ledger.places(self.repository) if place.kind == "manifests"]
        held = {content for place in places for content in self.ledger.holds(place)}
        images = [image(number) for number in range(IMAGES)]
        return {digest(payload(one)) for raw, used in images if digest(raw) in held for one in used}

    def delete(self) -> None:
        """Delete a tag, a manifest with all its tags, or a blob that no manifest names, so that images stay whole."""
        named = self.named_blobs()
        held = [place for place in self.certain(self.repository) if place.name not in named]
        held += self.certain(self.mirror)
        if not held:
            return
        place = self.random.choice(held)
        gone = [place]
        if place.kind == "manifests" and ":" in place.name:
            tags = [other for other in self.ledger.places(self.repository) if other.kind == "manifests"]
            gone += [other for other in tags if other != place and place.name in self.ledger.holds(other)]
        for one in gone:
            self.ledger.intend(one, None)
        if self.expect(self.wire.ask("DELETE", place.path), 202, f"deleting {place.path}"):
            for one in gone:
                self.ledger.settle(one, None)

    def pull(self) -> None:
        """Read any place, also another writer's; what is being written meanwhile must at least be whole."""
        place = self.random.choice(self.ledger.places() or [Place(self.repository, "manifests", "tag0")])
        version, allowed = self.ledger.version(place), self.ledger.holds(place)
        answer = self.wire.ask("GET", place.path)
        steady: frozenset[Content] | None = allowed if self.ledger.version(place) == version else None
        self.ledger.judge(place, answer.status, answer.body, steady)


class Traffic:
    """All clients, each in a thread of its own, from ``start`` until ``join`` after the server's end."""

    def __init__(self, server: SluiceServer, ledger: Ledger, seed: int) -> None:
        self._server = server
        self._ledger = ledger
        self._killing = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(number, random.Random(f"{seed} {number}")), daemon=True)
            for number in range(WRITERS)
        ]
        self._threads.append(threading.Thread(target=self._collect, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def kill(self) -> None:
        """SIGKILL the server, and wait for the clients to notice."""
        self._killing.set()
        self._server.kill()
        for thread in self._threads:
            thread.join(timeout=60)
            if thread.is_alive():
                self._ledger.violate("a client still waits a minute after the server's end")

    def _write(self, number: int, randomness: random.Random) -> None:
        try:
            with Wire(self._server) as wire:
                writer = Writer(number, self._ledger, wire, randomness)
                while True:
                    writer.step()
        except BROKEN as error:
            if not self._killing.is_set():
                self._ledger.violate(f"a connection broke while the server lived: {error!r}")

    def _collect(self) -> None:
        while not self._killing.wait(COLLECT_PAUSE_S):
            try:
                call(self._server.data / SOCKET_NAME, "gc", {})
            except SluiceError as error:
                if not self._killing.is_set():
                    self._ledger.violate(f"garbage collection failed: {error}")

"""Random uploads, manifests, tags, deletions, mounts and collections against a running server, held to a model.

After every request the server must have answered what ``fuzz_model`` predicts; nothing is ever 5xx, every blob that can
be read has its digest's bytes, the whole closure of an accepted manifest is readable at once, and what was deleted is
gone at once. Contents are few and shared by all examples, so that collections and pushes of the same bytes meet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from integration import fuzz_model as model
from integration.fuzz_model import CONTENTS, Document, Outcome, RepositoryModel, Session
from sluice.errors import GcRunning
from sluice.server.admin import SOCKET_NAME, call
from sluice.testing.client import Answer, RegistryClient, digest_of
from sluice.testing.server import SluiceServer

STEPS = 40
EXAMPLES, EXAMPLES_LONG = 15, 300
TAGS = ("latest", "v1", "v2")
ALGORITHMS = st.sampled_from(["sha256", "sha256", "sha512"])
PLACES = st.sampled_from([0, 1])
CONTENT = st.sampled_from(CONTENTS)
DATA = st.data()

_numbers = itertools.count()


@dataclass(slots=True)
class Target:
    """A server for all examples. ``at_once``: it collects without a grace period."""

    server: SluiceServer
    client: RegistryClient
    background: ThreadPoolExecutor
    at_once: bool

    def collect(self) -> None:
        """Collect garbage now, unless a collection is at it."""
        try:
            call(self.server.data / SOCKET_NAME, "gc", {})
        except GcRunning:
            return


class RegistryMachine(RuleBasedStateMachine):
    """Two repositories of a registry, and what they must hold."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        number = next(_numbers)
        self.repositories = [RepositoryModel(f"fuzz/{number}/{part}") for part in ("a", "b")]
        self.sessions: list[Session] = []
        self.documents: list[Document] = []
        self.running: Future[None] | None = None

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request, which is never answered with 5xx."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.target.client.request(method, path, body, named)
        assert answer.status < 500, (method, path, answer)
        return answer

    def place(self, repository: RepositoryModel, kind: str, reference: str) -> str:
        return f"/v2/{repository.name}/{kind}/{reference}"

    def check_blob(self, repository: RepositoryModel, digest: str) -> None:
        """A blob is there with the right bytes, or not at all."""
        answer = self.send("GET", self.place(repository, "blobs", digest))
        held = repository.blobs.get(digest)
        assert (404 if held is None else 200) == answer.status
        if held is not None:
            assert digest_of(answer.body, digest.partition(":")[0]) == digest

    def check_manifest(self, repository: RepositoryModel, reference: str) -> None:
        """A manifest is there with the right bytes and type, or not at all."""
        answer = self.send("GET", self.place(repository, "manifests", reference))
        held = repository.find(reference)
        assert (404 if held is None else 200) == answer.status, (reference, answer)
        if held is not None:
            assert (held.raw, held.media_type) == (answer.body, answer.headers["content-type"])

    def check_closure(self, repository: RepositoryModel, document: Document) -> None:
        """Everything that a manifest needs can be read."""
        for digest in sorted(document.blobs):
            assert digest in repository.blobs
            self.check_blob(repository, digest)
        for digest in sorted(document.manifests):
            self.check_manifest(repository, digest)
            self.check_closure(repository, repository.manifests[digest])

    # Uploads

    @rule(where=PLACES, algorithm=ALGORITHMS)
    def start(self, where: int, algorithm: str) -> None:
        repository = self.repositories[where]
        answer = self.send("POST", f"/v2/{repository.name}/blobs/uploads/?digest-algorithm={algorithm}")
        assert answer.status == 202
        self.sessions.append(Session(repository, urlsplit(answer.headers["location"]).path))

    @precondition(lambda self: self.sessions)
    @rule(data=DATA, chunk=CONTENT, shift=st.sampled_from([None, 0, 0, 1, -1]))
    def append(self, data: st.DataObject, chunk: bytes, shift: int | None) -> None:
        session = data.draw(st.sampled_from(self.sessions), "session")
        headers = {}
        if shift is not None and chunk and len(session.data) + shift >= 0:
            first = len(session.data) + shift
            headers["Content_Range"] = f"{first}-{first + len(chunk) - 1}"
        accepted = not (headers and shift)
        session.data += chunk if accepted else b""
        answer = self.send("PATCH", session.path, chunk, **headers)
        assert (202 if accepted else 416, session.range) == (answer.status, answer.headers["range"])

    @precondition(lambda self: self.sessions)
    @rule(data=DATA)
    def ask_for_status(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.sessions), "session")
        answer = self.send("GET", session.path)
        assert (204, session.range) == (answer.status, answer.headers["range"])

    @precondition(lambda self: self.sessions)
    @rule(data=DATA)
    def cancel(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.sessions), "session")
        assert self.send("DELETE", session.path).status == 204
        self.sessions.remove(session)
        assert self.send("GET", session.path).status == 404

    @precondition(lambda self: self.sessions)
    @rule(data=DATA, chunk=CONTENT, right=st.sampled_from([True, True, False]), algorithm=ALGORITHMS)
    def commit(self, data: st.DataObject, chunk: bytes, right: bool, algorithm: str) -> None:
        session = data.draw(st.sampled_from(self.sessions), "session")
        whole = session.data + chunk
        digest = digest_of(whole if right else whole + b"!", algorithm)
        answer = self.send("PUT", f"{session.path}?digest={digest}", chunk)
        assert (201 if right else 400) == answer.status
        self.sessions.remove(session)
        if right:
            session.repository.blobs[digest] = whole
        self.check_blob(session.repository, digest)
        assert self.send("GET", session.path).status == 404

    @rule(where=PLACES, content=CONTENT, right=st.sampled_from([True, True, True, False]))
    def push(self, where: int, content: bytes, right: bool) -> None:
        repository, digest = self.repositories[where], digest_of(content if right else content + b"!")
        answer = self.send("POST", f"/v2/{repository.name}/blobs/uploads/?digest={digest}", content)
        assert (201 if right else 400) == answer.status
        if right:
            repository.blobs[digest] = content
        self.check_blob(repository, digest)

    @rule(where=PLACES, content=CONTENT)
    def mount(self, where: int, content: bytes) -> None:
        repository, source, digest = self.repositories[where], self.repositories[1 - where], digest_of(content)
        answer = self.send("POST", f"/v2/{repository.name}/blobs/uploads/?mount={digest}&from={source.name}")
        assert (201 if digest in source.blobs else 202) == answer.status
        if digest in source.blobs:
            repository.blobs[digest] = content
            self.check_blob(repository, digest)
        else:
            self.sessions.append(Session(repository, urlsplit(answer.headers["location"]).path))

    # Manifests

    def put(self, repository: RepositoryModel, document: Document, reference: str) -> None:
        path = self.place(repository, "manifests", reference)
        answer = self.send("PUT", path, document.raw, Content_Type=document.media_type)
        expected: Outcome = repository.put(document, reference)
        assert expected == (answer.status, None if answer.status == 201 else answer.codes[0])
        self.check_manifest(repository, reference)
        if answer.status == 201:
            assert document.subject == answer.headers.get("oci-subject")
            self.check_closure(repository, document)
        if document not in self.documents:
            self.documents.append(document)

    def reference(self, data: st.DataObject, document: Document) -> str:
        """Draw a tag, the right digest or a wrong one."""
        digests = [digest_of(document.raw), digest_of(document.raw, "sha512"), digest_of(document.raw + b"!")]
        return data.draw(st.sampled_from([*TAGS, *digests]), "reference")

    def subject(self, data: st.DataObject) -> Document | None:
        return data.draw(st.sampled_from([None, None, *self.documents]), "subject")

    @rule(where=PLACES, data=DATA, note=st.sampled_from("xyz"))
    def put_image(self, where: int, data: st.DataObject, note: str) -> None:
        repository = self.repositories[where]
        held = [content for content in CONTENTS if digest_of(content) in repository.blobs]
        some = st.sampled_from([*held * 3, *CONTENTS])
        layers = data.draw(st.lists(some, max_size=3), "layers")
        document = model.image(data.draw(some, "config"), layers, self.subject(data), note)
        self.put(repository, document, self.reference(data, document))

    @precondition(lambda self: self.documents)
    @rule(where=PLACES, data=DATA, note=st.sampled_from("xyz"))
    def put_index(self, where: int, data: st.DataObject, note: str) -> None:
        repository = self.repositories[where]
        some = st.sampled_from([*repository.manifests.values(), *self.documents])
        document = model.index(data.draw(st.lists(some, max_size=3), "manifests"), self.subject(data), note)
        self.put(repository, document, self.reference(data, document))

    @precondition(lambda self: any(repository.manifests for repository in self.repositories))
    @rule(data=DATA, note=st.sampled_from("xyz"))
    def attach(self, data: st.DataObject, note: str) -> None:
        """Put an untagged manifest that only its subject keeps."""
        repository = data.draw(st.sampled_from([one for one in self.repositories if one.manifests]), "repository")
        subject = data.draw(st.sampled_from([*repository.manifests.values()]), "subject")
        document = model.index([], subject, note)
        self.put(repository, document, digest_of(document.raw))

    @precondition(lambda self: self.documents)
    @rule(where=PLACES, data=DATA)
    def put_again(self, where: int, data: st.DataObject) -> None:
        document = data.draw(st.sampled_from(self.documents), "document")
        self.put(self.repositories[where], document, self.reference(data, document))

    @rule(where=PLACES, raw=st.sampled_from([b"", b"{}", b"[" * 1000, b'{"schemaVersion":2,"schemaVersion":2}']))
    def put_nonsense(self, where: int, raw: bytes) -> None:
        path = self.place(self.repositories[where], "manifests", "latest")
        assert self.send("PUT", path, raw, Content_Type="application/vnd.oci.image.manifest.v1+json").status == 400
        self.check_manifest(self.repositories[where], "latest")

    # Deletion

    @rule(where=PLACES, content=CONTENT, algorithm=ALGORITHMS)
    def delete_blob(self, where: int, content: bytes, algorithm: str) -> None:
        repository, digest = self.repositories[where], digest_of(content, algorithm)
        held = repository.blobs.pop(digest, None)
        assert (404 if held is None else 202) == self.send("DELETE", self.place(repository, "blobs", digest)).status
        self.check_blob(repository, digest)

    @rule(where=PLACES, data=DATA)
    def delete_manifest(self, where: int, data: st.DataObject) -> None:
        repository = self.repositories[where]
        reference = data.draw(st.sampled_from([*TAGS, *repository.manifests, digest_of(b"absent")]), "reference")
        affected = [tag for tag, digest in repository.tags.items() if reference in (tag, digest)]
        expected = repository.delete(reference)
        assert expected[0] == self.send("DELETE", self.place(repository, "manifests", reference)).status
        for gone in (reference, *affected):
            self.check_manifest(repository, gone)

    @rule()
    def collect_garbage(self) -> None:
        """Collect: beside what follows where nothing may go, else and before what follows without a grace period."""
        if self.target.at_once:
            self.target.collect()
            for repository in self.repositories:
                repository.collect()
            self.check_everything()
        elif self.running is None or self.running.done():
            self.running = self.target.background.submit(self.target.collect)

    # Reading

    @rule(where=PLACES, content=CONTENT, method=st.sampled_from(["GET", "HEAD"]))
    def read_blob(self, where: int, content: bytes, method: str) -> None:
        repository, digest = self.repositories[where], digest_of(content)
        held = digest in repository.blobs
        answer = self.send(method, self.place(repository, "blobs", digest), Range="bytes=1-")
        whole = method == "HEAD"
        expected = (200 if whole else 206 if len(content) > 1 else 416) if held else 404
        assert expected == answer.status
        if answer.status == 206:
            assert content[1:] == answer.body

    @rule(where=PLACES, tag=st.sampled_from(TAGS))
    def read_tag(self, where: int, tag: str) -> None:
        self.check_manifest(self.repositories[where], tag)

    @rule()
    def check_everything(self) -> None:
        """The server holds exactly what the model holds."""
        for repository in self.repositories:
            for digest in [*repository.blobs, *(digest_of(content) for content in CONTENTS)]:
                self.check_blob(repository, digest)
            for reference in [*repository.manifests, *(digest_of(document.raw) for document in self.documents), *TAGS]:
                self.check_manifest(repository, reference)
                answer = self.send("GET", self.place(repository, "referrers", reference)) if ":" in reference else None
                if answer is not None:
                    found = [entry["digest"] for entry in answer.json["manifests"]]
                    assert repository.referrers(reference) == found
            listed = self.send("GET", self.place(repository, "tags", "list"))
            assert sorted(repository.tags) == (json.loads(listed.body)["tags"] if listed.status == 200 else [])

    def teardown(self) -> None:
        if self.running is not None:
            self.running.result()
        self.check_everything()


@contextmanager
def fuzzed(data: Path, *flags: str, at_once: bool) -> Iterator[Target]:
    """A server for a run, looked over at its end."""
    with ThreadPoolExecutor(1) as background, SluiceServer(data, *flags) as server:
        client = RegistryClient(server)
        yield Target(server, client, background, at_once)
        client.close()
        report = call(data / SOCKET_NAME, "fsck", {})
        assert isinstance(report, dict)
        # Clients may delete a blob that a manifest names, so images may be incomplete; nothing else may be wrong.
        found = {kind: count for kind, count in report["counts"].items() if count and kind != "incomplete"}
        assert found == {}, report
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("grace_s", [86400, 0])
def test_registry_agrees_with_its_model(tmp_path: Path, grace_s: int, long_form: bool) -> None:
    """Whatever clients do in whatever order, the server answers as the model says, beside collections or after them."""
    examples = EXAMPLES_LONG if long_form else EXAMPLES
    flags = ("--gc-grace-s", str(grace_s), "--limits-uploads", "100000")
    with fuzzed(tmp_path / "data", *flags, at_once=not grace_s) as target:

        class Machine(RegistryMachine):
            def __init__(self) -> None:
                super().__init__(target)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )

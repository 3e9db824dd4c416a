"""The operator's commands do the same whether a server runs or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sluice.cli.app import run
from sluice.errors import ConfigInvalid, Unavailable
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.server import operations
from sluice.server.admin import Progress
from sluice.server.users import Users
from sluice.store.gc import GcSchedule
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, push_blob
from sluice.testing.server import SluiceServer

TAGS = [("lib/app", "v1"), ("lib/app", "v2"), ("lib/app", "v3"), ("lib/b", "v1"), ("team", "latest")]


async def fill(data: Path) -> None:
    """Put an image under every tag, and a blob that nothing names beside it."""
    store = LocalStore.open(data, StoreSettings(reserve_bytes=0))
    await store.start()
    try:
        for name, tag in TAGS:
            config, layer = f"config of {name}:{tag}".encode(), f"layer of {name}:{tag}".encode()
            for content in (config, layer, b"loose " + layer):
                await push_blob(store, Repository(name), content)
            await store.put_manifest(Repository(name), Tag(tag), image(config, layer), "tester")
    finally:
        await store.close()


@contextmanager
def beside(data: Path, server: bool) -> Iterator[None]:
    """With a server on the data directory, or without."""
    if not server:
        yield
        return
    with SluiceServer(data):
        yield


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command that must succeed and return what it printed as JSON."""
    code = run([*arguments, "--output", "json"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return json.loads(printed.out)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLUICE_STORAGE_RESERVE_BYTES", "0")
    asyncio.run(fill(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("server", [False, True], ids=["alone", "server"])
def test_commands(
    server: bool, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tags, a tag's history and users are the same from a server and from the directory; errors too."""
    monkeypatch.setattr(operations, "TAGS_PER_PAGE", 2)
    where = ("--data", str(data))
    with beside(data, server):
        everything = output(capsys, "tags", *where)
        one = output(capsys, "tags", "lib/app", *where)
        moves = output(capsys, "tags", "lib/app", "--history", "v2", *where)
        dry = output(capsys, "gc", "--dry-run", *where)
        unknown = run(["tags", "none", *where]), capsys.readouterr().err
    assert [(row["repository"], row["tag"]) for row in everything] == TAGS
    assert [(row["repository"], row["tag"]) for row in one] == TAGS[:3]
    assert [(move["digest"], move["actor"]) for move in moves] == [(one[1]["digest"], "tester")]
    assert (dry["dry_run"], dry["links"]) == (True, 0)
    assert unknown == (1, "sluice: repository none does not exist: sluice tags without a name lists all\n")


@pytest.mark.parametrize("server", [False, True], ids=["alone", "server"])
def test_gc(server: bool, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without grace, the blobs that nothing names go, as the dry run foretold, and the tags stay."""
    monkeypatch.setenv("SLUICE_GC_GRACE_S", "0")
    where = ("--data", str(data))
    with beside(data, server):
        foretold = output(capsys, "gc", "--dry-run", *where)
        done = output(capsys, "gc", *where)
        again = output(capsys, "gc", *where)
        kept = output(capsys, "tags", *where)
    loose = {"manifests": 0, "links": len(TAGS), "blobs": len(TAGS)}
    assert [{name: report[name] for name in loose} for report in (foretold, done)] == [loose, loose]
    assert (again["links"], again["blobs"], len(kept)) == (0, 0, len(TAGS))
    # A server has readers that may hold a file, so its files go later.
    assert done["unlinked"] == (0 if server else len(TAGS))


@pytest.mark.parametrize("server", [False, True], ids=["alone", "server"])
def test_fsck(server: bool, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit is found, named and put away, and the image that lacks it is named from then on."""
    where = ("--data", str(data))
    layer = Digest.of(b"layer of lib/app:v2")
    file = data / "content" / "sha256" / layer.hex[:2] / layer.hex
    with beside(data, server):
        whole = run(["fsck", *where]), capsys.readouterr().out
        file.write_bytes(b"Layer of lib/app:v2")
        found = run(["fsck", *where]), capsys.readouterr().out
        repaired = run(["fsck", "--repair", *where]), capsys.readouterr().out
        after = run(["fsck", "--output", "json", *where]), json.loads(capsys.readouterr().out)
    files = 4 * len(TAGS)  # config, layer, loose blob, manifest
    assert (whole[0], whole[1].startswith(f"checked {files} files, ")) == (0, True)
    assert whole[1].endswith(": everything is whole\n")
    damage, lack, outcome = found[1].splitlines()
    assert (found[0], damage) == (1, f"damaged: {layer} in lib/app: its bytes have another digest")
    assert lack == f"incomplete: lib/app:v2 lacks {layer}"
    assert outcome.endswith(": not everything is whole; sluice fsck --repair puts damage away")
    assert (repaired[0], f"; moved to quarantine/{layer.hex}." in repaired[1]) == (1, True)
    assert repaired[1].endswith(": damage was put away; push what is incomplete again\n")
    assert (after[0], after[1]["contents"], after[1]["counts"]["damaged"]) == (1, files - 1, 0)
    assert [image["name"] for image in after[1]["incomplete"]] == ["lib/app:v2"]


def test_users_added_beside_a_server_are_its_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user added through a running server is listed by it as it was added."""
    secret = tmp_path / "password"
    secret.write_text("pw-of-ann\n")
    where = ("--data", str(tmp_path / "data"))
    with SluiceServer(tmp_path / "data"):
        added = output(capsys, "user", "add", "ann", "--role", "read", "--password-file", str(secret), *where)
        listed = output(capsys, "user", "list", *where)
    assert ([user["name"] for user in listed], added) == (["ann"], listed[0])


def test_data_in_use_is_said(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that holds the data without a socket is named rather than disturbed."""
    holder = LocalStore.open(data, StoreSettings(reserve_bytes=0))
    try:
        code = run(["tags", "--data", str(data)])
    finally:
        asyncio.run(holder.close())
    assert code == 1
    assert capsys.readouterr().err.startswith(f"sluice: data directory {data} is in use by process ")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("gc", {"dry_run": "yes"}, "dry_run is 'yes': give true or false"),
        ("fsck", {"repair": 1}, "repair is 1: give true or false"),
        ("tags", {"repository": 5}, "repository is 5: give text"),
        ("tags", {"after": ["a"]}, "after is ['a']: give the next of the page before"),
        ("history", {"repository": "a"}, "tag is None: give text"),
        ("user add", {"name": "a", "password": "p", "role": "king"}, "role is 'king': write read, write, admin"),
        (
            "user add",
            {"name": "a", "password": "p", "role": "read", "prefixes": [1]},
            "prefixes is [1]: give a list of repositories",
        ),
        ("user list", {"after": 1}, "after is 1: give text"),
        ("user remove", {}, "name is None: give text"),
    ],
)
def test_arguments_are_checked(command: str, arguments: dict[str, object], message: str, data: Path) -> None:
    """A request over the socket can hold anything; what makes no sense is refused by name."""

    async def attempt() -> object:
        store = LocalStore.open(data, StoreSettings(reserve_bytes=0))
        try:
            users = Users(data)
            known = operations.handlers(store, users, GcSchedule(store, 0))
            return await known[command](arguments, lambda _: None)
        finally:
            await store.close()

    with pytest.raises(ConfigInvalid) as caught:
        asyncio.run(attempt())
    assert caught.value.message == message


def test_work_ends_where_it_tells_when_nobody_waits() -> None:
    """Cancelled work in a thread stops at its next progress, and only then is the caller let go."""
    steps: list[int] = []
    ended: list[type[BaseException]] = []

    def work(tell: Progress) -> None:
        try:
            for step in range(1000):
                steps.append(step)
                tell(step)
        except Unavailable as stop:
            ended.append(type(stop))
            raise

    async def scenario() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(_: object) -> None:
            loop.call_soon_threadsafe(gate.set)
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()

        task = asyncio.create_task(operations.stoppable(work, slow))
        await gate.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert (ended, len(steps) < 1000) == ([Unavailable], True)

"""Where credentials come from: files that change, and programs that are asked."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import time
from pathlib import Path

import pytest

from sluice.errors import ConfigInvalid, UpstreamUnauthorized
from sluice.upstream import program
from sluice.upstream.credentials import PROGRAM_KEPT_S, CredentialSource
from sluice.upstream.docker_config import Credentials
from sluice.upstream.settings import Anonymous, CredentialProgram, DockerConfig, PasswordFile, StaticPassword
from sluice.wire.address import parse_upstream

ADDRESS = parse_upstream("registry.test:5000/team")
GOOD = """printf '{"ServerURL":"%s","Username":"robot","Secret":"hidden"}' "$server" """


def script(path: Path, body: str) -> str:
    """A program that has read the server's address into ``$server``."""
    path.write_text(f'#!/bin/sh\nread -r server || true\necho "$1 $server" >> {path}.asked\n{body}\n')
    path.chmod(0o755)
    return str(path)


def asked(path: Path) -> list[str]:
    return Path(f"{path}.asked").read_text().splitlines()


def test_the_simple_sources_are_what_they_are() -> None:
    """Nothing, or what is configured."""

    async def story() -> None:
        assert await CredentialSource(Anonymous(), ADDRESS).get() is None
        source = CredentialSource(StaticPassword("n", "p"), ADDRESS)
        assert Credentials("n", "p") == await source.get()

    asyncio.run(story())
    assert "p'" not in repr(StaticPassword("n", "p")) + repr(Credentials("n", "p"))


def test_a_password_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    """In place, by rename, and by a link that is turned, as Kubernetes does; only its first line counts."""
    file = tmp_path / "password"
    file.write_text("one\r\nrest\n")

    async def story() -> None:
        source = CredentialSource(PasswordFile("n", file), ADDRESS)
        assert Credentials("n", "one") == await source.get()
        file.write_text("two")
        assert Credentials("n", "two") == await source.get()
        for number, text in enumerate(("three", "fours")):
            (tmp_path / f"data{number}").write_text(text)
            os.utime(tmp_path / f"data{number}", (1, 1))
            link = tmp_path / "link"
            link.symlink_to(tmp_path / f"data{number}")
            link.rename(file)
            assert Credentials("n", text) == await source.get()

    asyncio.run(story())


@pytest.mark.parametrize(("text", "problem"), [(None, "cannot be read"), (b"", "is empty"), (b"\xff", "not UTF-8")])
def test_a_password_file_must_be_good_at_start(text: bytes | None, problem: str, tmp_path: Path) -> None:
    """The message names the file."""
    file = tmp_path / "password"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigInvalid, match=f"{file} .*{problem}"):
        CredentialSource(PasswordFile("n", file), ADDRESS)


def test_last_known_good_credentials_are_kept_until_new_ones_work(tmp_path: Path) -> None:
    """New ones are tried first, then stand behind; refused old ones make way."""
    file = tmp_path / "password"
    file.write_text("old")
    old, new = Credentials("n", "old"), Credentials("n", "new")

    async def story() -> None:
        source = CredentialSource(PasswordFile("n", file), ADDRESS)
        assert (old,) == await source.candidates()
        source.worked(old)
        file.write_text("new")
        assert (new, old) == await source.candidates()
        source.refused(new)
        assert (old, new) == await source.candidates()
        source.worked(old)
        assert (old, new) == await source.candidates()
        source.refused(old)
        source.worked(new)
        assert (new,) == await source.candidates()

    asyncio.run(story())


def test_a_docker_config_is_read_again_and_kept_while_it_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer that is half done is no outage."""
    file = tmp_path / "config.json"

    def write(password: str) -> None:
        auth = base64.b64encode(f"n:{password}".encode()).decode()
        file.write_text(json.dumps({"auths": {"registry.test:5000": {"auth": auth}}}))

    async def story() -> None:
        write("one")
        source = CredentialSource(DockerConfig(file), ADDRESS)
        assert Credentials("n", "one") == await source.get()
        file.write_text('{"auths":')
        assert [Credentials("n", "one")] * 2 == [await source.get(), await source.get()]
        write("longer")
        assert Credentials("n", "longer") == await source.get()

    asyncio.run(story())
    assert [f"upstream credentials file {file} is not JSON; going on with the credentials known before"] == [
        record.message for record in caplog.records
    ]


def test_a_program_is_asked_by_the_protocol_and_its_answer_kept(tmp_path: Path) -> None:
    """``get`` and the server's address; again after a while, and at once when its answer was refused."""
    path = tmp_path / "helper"
    now = [0.0]

    async def story() -> None:
        source = CredentialSource(CredentialProgram(script(path, GOOD)), ADDRESS, lambda: now[0])
        robot = Credentials("robot", "hidden")
        assert [robot] * 3 == [await source.get() for _ in range(3)]
        assert ["get registry.test:5000"] == asked(path)
        now[0] = PROGRAM_KEPT_S
        await source.get()
        assert 2 == len(asked(path))
        source.refused(robot)
        await source.get()
        assert 3 == len(asked(path))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("""echo '{"Username":"<token>","Secret":"t"}'""", Credentials("", "t", is_identity_token=True)),
        ("""echo '{"Username":"","Secret":""}'""", None),
        ("echo credentials not found in native keychain; exit 1", None),
        ("exec 0<&-; " + GOOD, Credentials("robot", "hidden")),
    ],
)
def test_what_a_program_may_say(body: str, expected: Credentials | None, tmp_path: Path) -> None:
    """An identity token, or that it knows nothing."""
    source = CredentialSource(CredentialProgram(script(tmp_path / "helper", body)), ADDRESS)
    assert expected == asyncio.run(source.get())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("exit 3", "failed with status 3"),
        ("echo nonsense", "no JSON that has Username and Secret"),
        ("echo '[]'", "no JSON that has"),
        ("""echo '{"Username":1,"Secret":"x"}'""", "no JSON that has"),
        ("exec tr '\\0' x < /dev/zero", "more than 65536 bytes"),
        ("kill -9 $$", "took longer|failed"),
    ],
)
def test_a_program_that_fails_is_no_anonymity(body: str, problem: str, tmp_path: Path) -> None:
    """We could not ask, which is an upstream's error; however much it writes, it is cut off."""
    source = CredentialSource(CredentialProgram(script(tmp_path / "helper", body)), ADDRESS)
    with pytest.raises(UpstreamUnauthorized, match=problem):
        asyncio.run(source.get())


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    source = CredentialSource(CredentialProgram(str(tmp_path / "absent")), ADDRESS)
    with pytest.raises(UpstreamUnauthorized, match="absent cannot be run: No such file"):
        asyncio.run(source.get())


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a child of it holds the output open. The event loop goes on meanwhile."""
    monkeypatch.setattr(program, "PROGRAM_S", 0.3)
    path = tmp_path / "helper"

    async def story() -> None:
        source = CredentialSource(CredentialProgram(script(path, f"sleep 60 & echo $! > {path}.pid; wait")), ADDRESS)
        task = asyncio.create_task(source.get())
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 3
        with pytest.raises(UpstreamUnauthorized, match=r"took longer than 0\.3 s"):
            await task

    asyncio.run(story())
    child = Path(f"/proc/{Path(f'{path}.pid').read_text().strip()}")
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or (child / "stat").read_text().split()[2] == "Z"


def test_a_docker_configs_program_goes_before_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name ``docker-credential-<name>``; where it knows nothing, what stands in the file counts."""
    script(tmp_path / "docker-credential-one", GOOD)
    script(tmp_path / "docker-credential-none", "echo credentials not found in native keychain; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "config.json"
    auths = {"registry.test:5000": {"username": "n", "password": "p"}}

    async def story() -> None:
        for helper, expected in (("one", Credentials("robot", "hidden")), ("none", Credentials("n", "p"))):
            file.write_text(json.dumps({"auths": auths, "credHelpers": {"registry.test:5000": helper}}))
            assert expected == await CredentialSource(DockerConfig(file), ADDRESS).get()

    asyncio.run(story())


def test_no_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong with it."""
    caplog.set_level(logging.DEBUG, "sluice")
    file = tmp_path / "password"
    file.write_text("first-hush")

    async def story() -> None:
        source = CredentialSource(PasswordFile("n", file), ADDRESS)
        source.worked(await source.get())
        file.write_text("second-hush")
        source.refused(await source.get())
        file.unlink()
        await source.get()

    asyncio.run(story())
    assert 2 == len(caplog.records)
    assert "hush" not in caplog.text

"""The command line: results on stdout, the story on stderr, exit codes, and no traceback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import sluice
from sluice.cli.app import run
from sluice.cli.manual import manual
from sluice.cli.show import show_rows, size, when
from sluice.config import LEAVES

ROOT = Path(__file__).parent.parent.parent
SLUICE = [sys.executable, "-m", "sluice"]


def test_manual_is_up_to_date() -> None:
    """docs/configuration.md is what the schema says today."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == manual()


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["version"], 0, f"sluice {sluice.__version__}\n", ""),
        (["version", "--output", "json"], 0, f'{{"version": "{sluice.__version__}"}}\n', ""),
        (
            ["serve", "--listen", "x"],
            2,
            "",
            "sluice: listen is 'x' (flag --listen): is not an address:"
            " write host:port with a port from 1 to 65535, IPv6 as [::1]:5001\n",
        ),
        (
            ["tags", "--data", "/nonexistent/data"],
            2,
            "",
            "sluice: data is '/nonexistent/data': no such directory; name the one that sluice serve uses with --data\n",
        ),
        (
            ["gc", "--data", "/nonexistent/data", "--config", "/nonexistent/c.yaml"],
            2,
            "",
            "sluice: config file /nonexistent/c.yaml cannot be read: No such file or directory; name a readable file\n",
        ),
        (
            ["user", "add", "a", "--role", "read", "--password-file", "/nonexistent/p"],
            1,
            "",
            "sluice: /nonexistent/p: No such file or directory\n",
        ),
    ],
)
def test_exit_codes_and_streams(
    arguments: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results go to stdout, errors are one line on stderr, and the exit code tells which it was."""
    assert (run(arguments), *capsys.readouterr()) == (code, out, err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serve", "--nonsense"],
        ["tags", "--history", "t", "--data", "/"],
        ["user", "add", "a"],
        ["user", "add", "a", "--role", "read", "--password-stdin", "--password-file", "/x"],
        ["gc", "--output", "xml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage ends with 2, says so on stderr and prints no result."""
    assert (run(arguments), capsys.readouterr().out) == (2, "")


def test_serve_takes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of serve lists the flag and the variable of every setting."""
    assert run(["serve", "--help"]) == 0
    listed = capsys.readouterr().out
    assert [leaf.key for leaf in LEAVES.values() if leaf.flag not in listed or leaf.variable not in listed] == []


def test_users_live_in_the_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server, users are added, listed, replaced and removed in the data directory."""
    data = ["--data", str(tmp_path / "data")]
    secret = tmp_path / "password"
    secret.write_text("correct horse\n")
    adding = ["--password-file", str(secret), *data]
    codes = [
        run(["user", "add", "ann", "--role", "write", "--prefix", "team", "--prefix", "lib", *adding]),
        run(["user", "add", "bob", "--role", "read", *adding]),
        run(["user", "add", "bob", "--role", "admin", *adding]),
        run(["user", "remove", "ann", *data]),
    ]
    said = capsys.readouterr().out
    run(["user", "list", "--output", "json", *data])
    listed = json.loads(capsys.readouterr().out)
    assert codes == [0, 0, 0, 0]
    assert said == "user ann: write\nuser bob: read\nuser bob: admin\nuser ann removed\n"
    assert [(user["name"], user["role"], user["prefixes"]) for user in listed] == [("bob", "admin", [])]
    assert "correct horse" not in (tmp_path / "data" / "users.json").read_text()


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"x" * 5000])
def test_bad_passwords_are_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty, undecodable or endless password is refused and no user comes to be."""
    secret = tmp_path / "password"
    secret.write_bytes(content)
    data = ["--data", str(tmp_path / "data")]
    code = run(["user", "add", "ann", "--role", "read", "--password-file", str(secret), *data])
    assert (code, (tmp_path / "data").exists()) == (2, False)
    assert capsys.readouterr().err.startswith(f"sluice: --password-file {secret} is ")


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command on a terminal; yields the process and the descriptor at which a person would sit."""
    leader, follower = pty.openpty()
    try:
        with subprocess.Popen(
            [*SLUICE, *arguments], stdin=follower, stdout=follower, stderr=follower, start_new_session=True
        ) as process:
            os.close(follower)
            try:
                yield process, leader
            finally:
                process.kill()
    finally:
        os.close(leader)


def read_until(terminal: int, prompt: bytes) -> bytes:
    shown = b""
    while not shown.endswith(prompt):
        shown += os.read(terminal, 1024)
    return shown


def read_rest(terminal: int) -> bytes:
    """Everything shown until the program let go of its terminal, which Linux reports as an I/O error."""
    shown = b""
    with suppress(OSError):
        while more := os.read(terminal, 1024):
            shown += more
    return shown


def test_password_prompt_shows_nothing(tmp_path: Path) -> None:
    """On a terminal the password is asked for twice and never shown."""
    with on_a_terminal("user", "add", "ann", "--role", "read", "--data", str(tmp_path)) as (process, terminal):
        shown = b""
        for prompt in (b"Password: ", b"confirmation: "):
            shown += read_until(terminal, prompt)
            while termios.tcgetattr(terminal)[3] & termios.ECHO:
                time.sleep(0.01)
            os.write(terminal, b"s3cret-word\n")
        shown += read_rest(terminal)
        code = process.wait(20)
    assert (code, b"user ann: read" in shown, b"s3cret-word" in shown) == (0, True, False)


def test_interruption_is_quiet(tmp_path: Path) -> None:
    """Ctrl-C ends a command with 130 and no traceback."""
    with on_a_terminal("user", "add", "ann", "--role", "read", "--data", str(tmp_path)) as (process, terminal):
        read_until(terminal, b"Password: ")
        process.send_signal(signal.SIGINT)
        said = read_rest(terminal)
        code = process.wait(20)
    assert (code, said.strip()) == (130, b"")


def test_reader_that_leaves_is_no_error() -> None:
    """Output into a closed pipe ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*SLUICE, "config-docs"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_rows_line_up_and_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell."""
    long = "sha256:" + "a" * 64
    show_rows([{"tag": "v1", "digest": long, "who": None}, {"tag": "longer", "digest": "-", "who": ["a", "b"]}],
              ("tag", "digest", "who"), "human")  # fmt: skip
    expected = [f"TAG     {'DIGEST':71}  WHO", f"v1      {long}  -", f"longer  {'-':71}  a,b"]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB"), (2**42, "4.0 TiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    """Bytes are shown in the largest unit that leaves a whole part."""
    assert size(count) == text


def test_times_for_people() -> None:
    """Times are UTC and say so."""
    assert when(0) == "1970-01-01 00:00:00Z"

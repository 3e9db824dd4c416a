"""Files that somebody named: what is no file is refused by name, and nothing is waited for without end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout
from sluice.config import RegistryConfig, load_config
from sluice.config.reading import read_named
from sluice.errors import ConfigInvalid
from sluice.pki.durable import read_bounded

SOON_S = 5.0
LAYOUT = {"version": 1, "node": "worker-1", "mode": "unmanaged"}
SLUICE = [sys.executable, "-m", "sluice"]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", [lambda path: load_document(NodeLayout, path), lambda path: load_config(path, {}, {})])
@pytest.mark.parametrize(("kind", "path"), [("directory", Path("/tmp")), ("device", Path("/dev/zero"))])
def test_what_is_no_file_is_refused(read: Callable[[Path], object], kind: str, path: Path) -> None:
    """As a layout, secrets or a configuration file."""
    with pytest.raises(ConfigInvalid, match=rf"{path} is a {kind}: name a regular file"):
        read(path)


def test_a_pipe_is_no_file_of_ours(pipe: Path) -> None:
    """What Sluice itself wrote is never a pipe, and opening one would wait for whoever writes into it."""
    with pytest.raises(ConfigInvalid, match=rf"^{pipe} is a pipe: name a regular file$"):
        read_bounded(pipe, 100)


@pytest.mark.parametrize("held", [b"", b"half"])
def test_a_pipe_without_an_end_is_not_waited_for(held: bytes, pipe: Path) -> None:
    """Nobody writes, or whoever wrote does not close it."""
    writer = os.open(pipe, os.O_RDWR) if held else None
    if writer is not None:
        os.write(writer, held)
    began = time.monotonic()
    with pytest.raises(ConfigInvalid, match=r"is a pipe that has not ended within 0\.2 s"):
        read_named(pipe, 100, pipe_s=0.2)
    assert time.monotonic() - began < SOON_S
    if writer is not None:
        os.close(writer)


@pytest.mark.parametrize("pauses", [[0.0], [0.2], [0.0, 0.2], [0.1, 0.1, 0.1]])
def test_a_pipe_is_read_to_its_end(pauses: list[float], pipe: Path) -> None:
    """In however many pieces it comes, and if the writer comes late."""

    def write() -> None:
        time.sleep(pauses[0])
        with pipe.open("wb", buffering=0) as file:
            for pause in pauses:
                time.sleep(pause)
                file.write(b"x" * 100_000)

    writer = threading.Thread(target=write)
    writer.start()
    content = read_named(pipe, 1 << 20, pipe_s=SOON_S)
    writer.join()
    assert len(pauses) * 100_000 == len(content)


def test_a_pipe_is_bounded_and_may_be_empty(pipe: Path) -> None:
    """No more than one byte too many is read; a writer that leaves without a word leaves nothing."""
    with pipe.open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
        assert b"x" * 101 == read_named(pipe, 100, pipe_s=SOON_S)
        assert b"x" * 1001 == read_named(pipe, 1000, pipe_s=SOON_S)
    writer = threading.Timer(0.2, lambda: pipe.open("wb").close())
    writer.start()
    assert b"" == read_named(pipe, 100, pipe_s=SOON_S)
    writer.join()


def test_links_and_the_null_device_are_read(tmp_path: Path) -> None:
    """A link to a file is a file, and ``/dev/null`` is an empty one, as everywhere."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert (b"x", b"") == (read_bounded(tmp_path / "link", 9), read_bounded(Path(os.devnull), 9))
    assert RegistryConfig() == load_config(Path(os.devnull), {}, {})


def test_a_layout_may_come_from_a_shell(tmp_path: Path) -> None:
    """By ``<(…)`` and by ``/dev/stdin``: secrets that a program hands out need not stand on a disk."""
    text = json.dumps(LAYOUT | {"paths": {"state": str(tmp_path)}})
    plan = " ".join([*SLUICE, "node", "plan", "--layout"])
    given = [
        subprocess.run(["bash", "-c", command], input=text, capture_output=True, text=True, timeout=60, check=False)
        for command in (f"{plan} <(sleep 0.3; cat)", f"cat | {plan} /dev/stdin", f"{plan} /dev/stdin <<<'{text}'")
    ]
    assert [(0, "nothing to do\n", "")] * 3 == [(one.returncode, one.stdout, one.stderr) for one in given]

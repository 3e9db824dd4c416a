"""The data directory: made once, versioned, locked, and kept from filling up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sluice.errors import DataDirectoryBusy, DataDirectoryTooNew, StorageFull, StoreDamaged, Unavailable
from sluice.oci.digest import Digest
from sluice.store.lock import DirectoryLock
from sluice.store.pace import start_writeback
from sluice.store.paths import FORMAT_VERSION, Paths, make_data_directory, prepare, write_durably
from sluice.store.reserve import Reserve, refused


def test_a_new_directory_is_complete_and_private(tmp_path: Path) -> None:
    """Every shard of both algorithms is there before the first blob; nobody else may look."""
    data = tmp_path / "deep" / "data"
    make_data_directory(data)
    paths = prepare(data)
    assert sorted(os.listdir(data)) == ["VERSION", "content", "quarantine", "uploads"]
    assert [len(os.listdir(paths.contents / name)) for name in ("sha256", "sha512")] == [256, 256]
    assert {path.stat().st_mode & 0o777 for path in data.rglob("*") if path.is_dir()} == {0o700}
    assert data.stat().st_mode & 0o777 == 0o700
    assert paths.version.stat().st_mode & 0o777 == 0o600


def test_content_has_one_place() -> None:
    """A digest's file is named by algorithm, shard and all of its digits."""
    digest = Digest.of(b"x", "sha512")
    expected = Path("/d/content/sha512") / digest.hex[:2] / digest.hex
    assert Paths(Path("/d")).content(digest) == expected


def test_a_lost_shard_is_made_again(tmp_path: Path) -> None:
    """Opening repairs a missing directory, and leaves the others alone."""
    paths = prepare(tmp_path)
    (paths.contents / "sha256" / "7f").rmdir()
    (paths.contents / "sha256" / "80" / "kept").touch()
    prepare(tmp_path)
    assert (paths.contents / "sha256" / "7f").is_dir()
    assert (paths.contents / "sha256" / "80" / "kept").exists()


def test_a_newer_directory_is_refused(tmp_path: Path) -> None:
    """A format above ours names both versions and the remedy."""
    prepare(tmp_path).version.write_text(f"{FORMAT_VERSION + 1}\n")
    with pytest.raises(
        DataDirectoryTooNew, match=rf"version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}.*newer Sluice"
    ):
        prepare(tmp_path)


@pytest.mark.parametrize("text", ["", "one", "-1", "1.0"])
def test_a_damaged_version_is_refused(text: str, tmp_path: Path) -> None:
    """What is no number is not guessed at."""
    prepare(tmp_path).version.write_text(text)
    with pytest.raises(StoreDamaged, match="VERSION"):
        prepare(tmp_path)


def test_a_durable_write_replaces_whole_files(tmp_path: Path) -> None:
    """The new bytes are there in full, the staging file is not."""
    path = tmp_path / "file"
    path.write_bytes(b"a longer old text")
    write_durably(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["file"])


def test_a_second_process_is_told_the_first_ones_number(tmp_path: Path) -> None:
    """While a process lives the lock is its; killed without a chance to clean up, the next one gets in."""
    code = (
        "import sys; from pathlib import Path; from sluice.store.lock import DirectoryLock\n"
        "lock = DirectoryLock(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"in\n"
        with pytest.raises(DataDirectoryBusy, match=rf"by process {owner.pid}\b"):
            DirectoryLock(tmp_path / "lock")
        owner.kill()
        owner.wait()
        lock = DirectoryLock(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    lock.release()
    lock.release()
    DirectoryLock(tmp_path / "lock").release()


def test_the_reserve_decides_about_writes(tmp_path: Path) -> None:
    """With less free than the reserve, writes are refused with both numbers; with more they pass."""
    roomy, tight = Reserve(tmp_path, 0), Reserve(tmp_path, 1 << 62)
    assert (roomy.writable(), tight.writable()) == (True, False)
    roomy.check()
    with pytest.raises(StorageFull, match=rf"{1 << 62} bytes.* has [1-9]\d* free"):
        tight.check()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EFBIG, StorageFull),
        (errno.EIO, Unavailable),
        (errno.EROFS, Unavailable),
    ],
)
def test_a_disks_refusal_has_a_meaning(number: int, expected: type[Exception]) -> None:
    """A full disk, quota or size limit is StorageFull; any other failure is temporary trouble of ours."""
    assert type(refused(OSError(number, os.strerror(number)), "it")) is expected


def test_writeback_is_started_on_files_only(tmp_path: Path) -> None:
    """On Linux the call works on a file; where it cannot work it says so and raises nothing."""
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 10_000)
        file.flush()
        assert start_writeback(file.fileno(), 0, 10_000) is True
        assert start_writeback(file.fileno(), 0, 0) is False
    reading, writing = os.pipe()
    assert start_writeback(writing, 0, 10) is False
    os.close(reading)
    os.close(writing)

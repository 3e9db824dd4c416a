"""Content whose process ends between its rename and its row: nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sluice.oci.digest import Digest
from sluice.oci.reference import Repository
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, push_blob

APP = Repository("team/app")
DATA = b"0123456789" * 1000
DIGEST = Digest.of(DATA)
DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from sluice.oci.reference import Repository
from sluice.store import changes
from sluice.store.local import LocalStore
from sluice.store.settings import StoreSettings
from sluice.testing.content import image, push_blob

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def work():
    store = LocalStore.open(Path(sys.argv[1]), StoreSettings(reserve_bytes=0))
    {setting}
    {work}

asyncio.run(work())
"""
AT_THE_ROW = "store.index.write_blocking = die"
AT_THE_FILE = "store._contents._place = die"
BLOB = "await push_blob(store, Repository('team/app'), b'0123456789' * 1000)"
MANIFEST = "await store.cache_manifest(Repository('team/app'), image(b'{}'), None, 'upstream')"


def kept(data: Path) -> list[str]:
    """The names of all files of content and of ``uploads/``."""
    return [path.name for place in ("content", "uploads") for path in (data / place).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("work", "digest"), [(BLOB, DIGEST), (MANIFEST, image(b"{}").digest)], ids=["blob", "manifest"]
)
@pytest.mark.parametrize(("setting", "placed"), [(AT_THE_ROW, True), (AT_THE_FILE, False)], ids=["placed", "staged"])
def test_what_was_not_entered_goes_at_the_next_start(
    tmp_path: Path, work: str, digest: Digest, setting: str, placed: bool
) -> None:
    """Killed with its file under its digest's name and no row, or just before, content is gone when the store is
    opened again, and can be brought as if nothing had been."""
    script = DIES.format(setting=setting, work=work)
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (digest.hex in kept(tmp_path)) == placed

    async def again() -> None:
        store = LocalStore.open(tmp_path, StoreSettings(reserve_bytes=0))
        assert kept(tmp_path) == []
        assert (await push_blob(store, APP, DATA)).digest == DIGEST
        await store.close()

    asyncio.run(again())
    assert kept(tmp_path) == [DIGEST.hex]


def test_what_was_entered_stays(tmp_path: Path) -> None:
    """A mark that outlived the commit says nothing against the content, and goes."""

    async def work() -> None:
        store = LocalStore.open(tmp_path, StoreSettings(reserve_bytes=0))
        await push_blob(store, APP, DATA)
        await store.close()
        for name in (f"placing-sha256-{DIGEST.hex}", "placing-nonsense"):
            (tmp_path / "uploads" / name).touch()
        store = LocalStore.open(tmp_path, StoreSettings(reserve_bytes=0))
        reader = await store.open_blob(APP, DIGEST)
        assert await reader.read(0, len(DATA)) == DATA
        reader.close()
        await store.close()

    asyncio.run(work())
    assert kept(tmp_path) == [DIGEST.hex]
    assert os.listdir(tmp_path / "uploads") == []

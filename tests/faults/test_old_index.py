"""A data directory that an earlier Sluice wrote, before a version of its own marked what the cache added."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.old_index import FORMS, take_back
from faults.test_data_directory import run_second
from sluice.server.admin import SOCKET_NAME, call
from sluice.store.index import Index
from sluice.store.schema import SCHEMA_VERSION
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import refused_address

LAYERS = (b"one layer", b"and another")


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[SluiceServer, str]]:
    """A server that has ended, with one image in its data directory, and that image's digest."""
    server = SluiceServer(tmp_path / "data", tls=False)
    with server, contextlib.closing(RegistryClient(server)) as client:
        digest = client.push_image("team/app", "v1", LAYERS)
        client.request("DELETE", f"/v2/team/app/blobs/{client.push_blob('team/app', b'condemned')}")
        call(server.data / SOCKET_NAME, "gc", {})
    yield server, digest
    if server.process is not None and server.process.poll() is None:
        server.kill()


def schema(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table's columns, and the names of all else."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT type, name FROM sqlite_schema ORDER BY name").fetchall()
        found = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for _, name in rows}
        totals = [row[:1] for row in connection.execute("SELECT name FROM totals ORDER BY name")]
        return {**found, "totals' names": totals}


@pytest.mark.parametrize("form", FORMS)
def test_an_old_index_becomes_a_new_one(written: tuple[SluiceServer, str], tmp_path: Path, form: str) -> None:
    """Opened once, an index of any earlier form has the tables and columns of one that was made today, and its rows;
    opened again, nothing changes."""
    path = written[0].data / "index.sqlite"
    fresh = tmp_path / "fresh.sqlite"
    Index.open(fresh).close()
    take_back(path, form)
    assert schema(path) != schema(fresh)
    for _ in range(2):
        Index.open(path).close()
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
            assert connection.execute("SELECT count(*) FROM contents").fetchone() == (len(LAYERS) + 2,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert schema(path) == schema(fresh)


@pytest.mark.parametrize("form", FORMS)
def test_an_old_data_directory_is_served_and_cached_in(written: tuple[SluiceServer, str], form: str) -> None:
    """A server starts on it, serves what was pushed, takes a push and checks clean; then a cache starts on it, serves
    the same with its upstream dead, and knows its space."""
    server, digest = written
    take_back(server.data / "index.sqlite", form)
    with server, contextlib.closing(RegistryClient(server)) as client:
        assert client.request("GET", "/v2/team/app/manifests/v1").headers["docker-content-digest"] == digest
        client.push_image("team/app", "v2", [*LAYERS, b"new"])
        assert call(server.data / SOCKET_NAME, "fsck", {"repair": False})["clean"] is True  # type: ignore[index]
        assert call(server.data / SOCKET_NAME, "gc", {}) is not None
    with refused_address() as refused:
        server.flags = ("--mode", "proxy", "--upstream", refused)
        with server, contextlib.closing(RegistryClient(server)) as client:
            for tag in ("v1", "v2"):
                assert client.request("GET", f"/v2/team/app/manifests/{tag}").status == 200
            status = call(server.data / SOCKET_NAME, "cache status", {})
            assert isinstance(status, dict)
            assert status["images"] == 2
    assert "Traceback" not in server.log.read_text()


def test_an_index_that_is_not_what_it_says_is_refused(written: tuple[SluiceServer, str]) -> None:
    """Where the tables of its version are not there, the server ends with a sentence, and nothing is changed."""
    path = written[0].data / "index.sqlite"
    take_back(path, "registry")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE condemned")
    before = schema(path)
    ended = run_second(written[0].data)
    assert ended.returncode == 1
    assert "the index failed (no such table: condemned)" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert schema(path) == before

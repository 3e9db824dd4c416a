"""One server for all suites that need no settings of their own, and a fresh repository in it for every test."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest

from integration.samples import HELD
from sluice.testing.client import RegistryClient, digest_of
from sluice.testing.server import SluiceServer

_numbers = itertools.count()


def assert_well(server: SluiceServer) -> None:
    """It has answered nothing with 5xx, and nothing unexpected is in its log."""
    status, metrics = server.operations("/metrics")
    assert status == 200
    assert "sluice_" in metrics
    assert [] == re.findall(r'.*(?:status|code)="5\d\d".*', metrics)
    assert "Traceback" not in server.log.read_text("utf-8", "replace")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """A server with default settings over TLS. It must have been well, and end well."""
    with SluiceServer(tmp_path_factory.mktemp("registry") / "data") as running:
        yield running
        assert_well(running)
        assert running.stop() == 0


@pytest.fixture
def client(server: SluiceServer) -> Iterator[RegistryClient]:
    """A connection to the shared server."""
    speaker = RegistryClient(server)
    yield speaker
    speaker.close()


@pytest.fixture
def repository() -> str:
    """A name that no other test uses."""
    return f"suite/r{next(_numbers):05d}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """A server in a directory of its own, which is looked over at the end."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("never to be served")
    with SluiceServer(outside / "data") as running:
        client = RegistryClient(running)
        client.push_blob("app", HELD)
        client.push_image("app", "v1")
        client.close()
        yield running
        assert ["data", "data.log", "secret"] == sorted(path.name for path in outside.iterdir())
        assert_well(running)


@pytest.fixture
def rude(registry: SluiceServer) -> Iterator[RegistryClient]:
    """A client that must find the server well when it has done its worst."""
    client = RegistryClient(registry)
    yield client
    assert client.request("GET", f"/v2/app/blobs/{digest_of(HELD)}").body == HELD
    client.close()

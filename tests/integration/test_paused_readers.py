"""Direct mode with readers who pause: each holds a connection to the upstream, and nothing but blobs waits for them."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sluice.oci.digest import Digest
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import GeneratedBlob, UpstreamContent, UpstreamServer

BLOB = GeneratedBlob(256 << 20, declared=Digest.of(b"a name is enough: nobody reads it to its end"))
READERS = 70
SOON_S = 5.0


@contextmanager
def paused(data: Path, readers: int, *flags: str) -> Iterator[RegistryClient]:
    """A client beside so many readers of one blob who have read its head and nothing more."""
    content = UpstreamContent()
    content.push_image("team/app", "v1", [BLOB])
    with ExitStack() as stack:
        upstream = stack.enter_context(UpstreamServer(content))
        flags = ("--mode", "direct", "--upstream", upstream.address, *flags)
        sluice = stack.enter_context(SluiceServer(data, *flags, tls=False))
        for _ in range(readers):
            connection = http.client.HTTPConnection("127.0.0.1", sluice.port, timeout=30)
            stack.callback(connection.close)
            connection.request("GET", f"/v2/team/app/blobs/{BLOB.digest}")
            assert 200 == connection.getresponse().status
        client = RegistryClient(sluice)
        stack.callback(client.close)
        yield client


def test_paused_readers_do_not_hold_up_the_others(tmp_path: Path) -> None:
    """Beside 70 paused readers of one blob, manifests, tag lists and further blobs come at once."""
    with paused(tmp_path / "data", READERS) as client:
        began = time.monotonic()
        paths = ("manifests/v1", "tags/list")
        assert [200, 200] == [client.request("GET", f"/v2/team/app/{path}").status for path in paths]
        assert 206 == client.request("GET", f"/v2/team/app/blobs/{BLOB.digest}", None, {"Range": "bytes=0-9"}).status
        assert time.monotonic() - began < SOON_S


def test_the_limit_is_a_setting_and_the_error_names_it(tmp_path: Path) -> None:
    """With ``upstream.connections`` paused readers the next blob gets 504 with the setting, and manifests come."""
    with paused(tmp_path / "data", 2, "--upstream-connections", "2", "--upstream-head-s", "1s") as client:
        refused = client.request("GET", f"/v2/team/app/blobs/{BLOB.digest}")
        message = refused.json["errors"][0]["message"]
        assert (504, True) == (refused.status, "all 2 connections for blobs" in message)
        assert "raise upstream.connections" in message
        assert 200 == client.request("GET", "/v2/team/app/manifests/v1").status

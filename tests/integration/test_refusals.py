"""A refusal reaches the client, however much of the refused body is still on its way."""

from __future__ import annotations

import contextlib
import http.client

import pytest

from integration.samples import outcome
from sluice.testing.client import OCI_MANIFEST, Answer, RegistryClient
from sluice.testing.server import SluiceServer

BODY_BYTES = 24 << 20  # more than sockets hold between them
SENT_FIRST_BYTES = 1 << 20
PATIENCE_S = 30.0  # far less than limits.body_idle_s, after which a stalled body is given up
NOWHERE = "/v2/app/blobs/uploads/" + "0" * 32

REFUSED = {
    "a manifest that is too large": ("PUT", "/v2/app/manifests/large", 413, "SIZE_INVALID"),
    "a chunk for no upload": ("PATCH", NOWHERE, 404, "BLOB_UPLOAD_UNKNOWN"),
    "an end of no upload": ("PUT", f"{NOWHERE}?digest=sha256:{'0' * 64}", 404, "BLOB_UPLOAD_UNKNOWN"),
    "a blob under no digest": ("POST", "/v2/app/blobs/uploads/?digest=sha256:0", 400, "DIGEST_INVALID"),
}


def begin(connection: http.client.HTTPConnection, method: str, path: str) -> None:
    """Send the head of a request with a body of ``BODY_BYTES``."""
    connection.putrequest(method, path)
    connection.putheader("Content-Type", OCI_MANIFEST)
    connection.putheader("Content-Length", str(BODY_BYTES))
    connection.endheaders()


def answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


@pytest.mark.parametrize(("method", "path", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_client_that_sends_all_before_it_reads_hears_it(
    registry: SluiceServer, rude: RegistryClient, method: str, path: str, status: int, code: str
) -> None:
    """The whole body can be sent, the error comes back, and the connection is announced to end."""
    with contextlib.closing(rude.connect()) as connection:
        begin(connection, method, path)
        for _ in range(BODY_BYTES >> 20):
            connection.send(bytes(1 << 20))
        found = answer(connection)
    assert (status, [code]) == outcome(found)
    assert found.headers["connection"] == "close"


@pytest.mark.parametrize(("method", "path", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_client_that_listens_while_it_sends_hears_it_at_once(
    registry: SluiceServer, method: str, path: str, status: int, code: str
) -> None:
    """The error is there while most of the body is not."""
    with contextlib.closing(RegistryClient(registry, timeout_s=PATIENCE_S).connect()) as connection:
        begin(connection, method, path)
        connection.send(bytes(SENT_FIRST_BYTES))
        found = answer(connection)
    assert (status, [code]) == outcome(found)


def test_a_small_refused_body_does_not_cost_the_connection(registry: SluiceServer, rude: RegistryClient) -> None:
    """What is refused with a small body is answered on a connection that stays."""
    with contextlib.closing(rude.connect()) as connection:
        connection.request("PATCH", NOWHERE, b"x" * 1000)
        first = answer(connection)
        kept = connection.sock
        connection.request("GET", "/v2/")
        second = answer(connection)
        assert (404, 200) == (first.status, second.status)
        assert connection.sock is kept

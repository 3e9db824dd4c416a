"""The second listener of a running server: a client certificate instead of a password."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from integration.callers import BLOB, USERS, ask, basic, with_users
from sluice.pki.material import client_authority, client_certificate
from sluice.testing.client import RegistryClient, digest_of
from sluice.testing.server import SluiceServer, free_port


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SluiceServer, Path, str]]:
    """A server with a second listener for certificates; the directory with them, and that listener's URL."""
    folder, port = tmp_path_factory.mktemp("certified"), free_port()
    now = datetime.now(UTC)
    for name in ("ours", "theirs"):
        (folder / name).mkdir()
        leaf = client_certificate(client_authority(folder / name, now), "node-1", now)
        (folder / name / "client.crt").write_bytes(leaf.chain_pem)
        (folder / name / "client.key").write_bytes(leaf.key_pem)
    data = with_users(folder / "data", USERS)
    flags = ["--client-listen", f"127.0.0.1:{port}", "--client-ca", str(folder / "ours" / "client-ca.crt")]
    with SluiceServer(data, *flags, "--client-role", "read") as server:
        client = RegistryClient(server, basic("root"))
        client.push_image("shared", "v1", [BLOB])
        client.close()
        yield server, folder, f"https://127.0.0.1:{port}"


def presenting(server: SluiceServer, folder: Path | None) -> ssl.SSLContext:
    """A client's context with the certificate of a folder."""
    context = server.ssl_context()
    if folder is not None:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context


def test_client_certificate_is_enough(certified: tuple[SluiceServer, Path, str]) -> None:
    """A client of the right CA pulls without a password, and may do what client_role says and no more."""
    server, folder, url = certified
    with httpx.Client(verify=presenting(server, folder / "ours"), base_url=url) as client:
        found = [client.get(f"/v2/{path}").status_code for path in ("", "shared/manifests/v1", "shared/manifests/v1")]
        assert [200, 200, 200] == found
        assert client.get(f"/v2/shared/blobs/{digest_of(BLOB)}").content == BLOB
        refused = client.post("/v2/shared/blobs/uploads/")
        assert (403, "DENIED") == (refused.status_code, refused.json()["errors"][0]["code"])


def test_readiness_where_the_traffic_is(certified: tuple[SluiceServer, Path, str]) -> None:
    """Both listeners say whether the registry can be read, and ask nobody for a password for it."""
    server, folder, url = certified
    with httpx.Client(verify=presenting(server, folder / "ours")) as client:
        answers = [client.get(f"{one}/readyz") for one in (server.url, url)]
        assert [(200, "ok\n")] * 2 == [(one.status_code, one.text) for one in answers]
        assert client.get(f"{server.url}/readyz/").status_code == 404


@pytest.mark.parametrize("folder", [None, "theirs"])
def test_client_without_the_right_certificate(certified: tuple[SluiceServer, Path, str], folder: str | None) -> None:
    """The second listener speaks to nobody without a certificate of its CA, not even with a password."""
    server, home, url = certified
    context = presenting(server, home / folder if folder else None)
    with httpx.Client(verify=context, base_url=url) as client, pytest.raises(httpx.TransportError):
        client.get("/v2/", headers={"Authorization": basic("root")})


def test_main_listener_asks_for_no_certificate(certified: tuple[SluiceServer, Path, str]) -> None:
    """On the main listener nothing has changed: a password is needed, and a certificate is none."""
    server, folder, _ = certified
    assert ask(server, "GET", "shared/manifests/v1", basic("reader")).status == 200
    with httpx.Client(verify=presenting(server, folder / "ours"), base_url=server.url) as client:
        assert client.get("/v2/shared/manifests/v1").status_code == 401

"""Real registries: Debian's ``docker-registry``, plain and guarded and over TLS, and Sluice itself with tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import pytest
from integration.callers import BLOB as GUARDED_BLOB
from integration.callers import USERS, basic, with_users

from sluice.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamUnauthorized
from sluice.oci.digest import Digest
from sluice.oci.reference import Repository, Tag
from sluice.pki.authority import open_authority
from sluice.pki.leaf import issue_server, parse_names
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer, free_port
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import Anonymous, CredentialSettings, StaticPassword, UpstreamSettings
from sluice.wire.address import parse_upstream

NAME = Repository("team/app")
LAYER = bytes(range(251)) * 20_000
CONFIG = b'{"architecture":"amd64","os":"linux"}'
START_S = 30.0
USER = StaticPassword("robot", "secret")

pytestmark = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="not installed: docker-registry")


@dataclass(frozen=True, slots=True)
class Running:
    """A registry that holds one image, and what a client needs to know of it."""

    url: str
    ca: Path | None
    credentials: CredentialSettings
    manifest: bytes


def described(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [described(LAYER, "application/vnd.oci.image.layer.v1.tar")],
    }
).encode()


def request(url: str, method: str, body: bytes, media_type: str, ca: Path | None) -> str:
    """The answer's ``Location``, or nothing; raises OSError for everything but success."""
    context = None if ca is None else ssl.create_default_context(cafile=str(ca))
    headers = {"Content-Type": media_type, "Authorization": basic(USER.name, USER.password)}
    asked = urllib.request.Request(url, body, headers, method=method)
    with urllib.request.urlopen(asked, timeout=30, context=context) as answer:
        return str(answer.headers["Location"] or "")


def push(url: str, ca: Path | None) -> None:
    for data in (CONFIG, LAYER):
        location = request(f"{url}/v2/{NAME}/blobs/uploads/", "POST", b"", "application/octet-stream", ca)
        joined = f"{url}{urlsplit(location).path}?{urlsplit(location).query}&digest={Digest.of(data)}"
        request(joined, "PUT", data, "application/octet-stream", ca)
    for tag in ("v1", "v2", "v3"):
        media_type = "application/vnd.oci.image.manifest.v1+json"
        request(f"{url}/v2/{NAME}/manifests/{tag}", "PUT", MANIFEST, media_type, ca)


def wait_for(process: subprocess.Popen[bytes], url: str, ca: Path | None, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            request(f"{url}/v2/", "GET", b"", "text/plain", ca)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"docker-registry did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module", params=["plain", "htpasswd", "tls"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """docker-registry in one of its guises."""
    directory = tmp_path_factory.mktemp("registry")
    directory.chmod(0o700)
    port = free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    document: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": http,
    }
    ca = None
    if request.param == "htpasswd":
        hashed = bcrypt.hashpw(USER.password.encode(), bcrypt.gensalt(4, b"2a"))
        (directory / "htpasswd").write_bytes(USER.name.encode() + b":" + hashed + b"\n")
        document["auth"] = {"htpasswd": {"realm": "here", "path": str(directory / "htpasswd")}}
    if request.param == "tls":
        now = datetime.now(UTC)
        authority = open_authority(directory, "ca", "Test CA", now)
        leaf = issue_server(authority, parse_names(["127.0.0.1"]), now)
        (directory / "crt").write_bytes(leaf.chain_pem)
        (directory / "key").write_bytes(leaf.key_pem)
        http["tls"] = {"certificate": str(directory / "crt"), "key": str(directory / "key")}
        ca = authority.path
    (directory / "config.yml").write_text(json.dumps(document))
    log = directory / "log"
    with log.open("wb") as output:
        command = ["docker-registry", "serve", str(directory / "config.yml")]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        url = f"{'http' if ca is None else 'https'}://127.0.0.1:{port}"
        wait_for(process, url, ca, log)
        push(url, ca)
        yield Running(url, ca, USER if request.param == "htpasswd" else Anonymous(), MANIFEST)
    finally:
        process.kill()
        process.wait()


def registry_of(running: Running, credentials: CredentialSettings | None = None) -> RemoteRegistry:
    chosen = running.credentials if credentials is None else credentials
    return RemoteRegistry(UpstreamSettings("real", parse_upstream(running.url), credentials=chosen, ca=running.ca))


async def pull(registry: RemoteRegistry, name: Repository, layer: bytes, raw: bytes) -> None:
    """The whole of one image, by every way there is."""
    digest = Digest.of(raw)
    resolved = await registry.resolve(name, Tag("v1"))
    assert (digest, len(raw)) == (resolved.digest, resolved.size)
    assert resolved == await registry.resolve(name, digest)
    assert raw == (await registry.manifest(name, digest)).raw
    assert raw == (await registry.manifest_by_tag(name, Tag("v1"))).raw
    for offset in (0, 1, len(layer) - 1):
        blob = await registry.open_blob(name, Digest.of(layer), offset)
        assert len(layer) == blob.size
        assert layer[offset:] == await blob.read(offset, len(layer) - offset)
        assert b"" == await blob.read_next(1)
        blob.close()
    assert [] == list(await registry.referrers(name, digest))
    absent = Digest.of(b"absent")
    with pytest.raises(BlobUnknown):
        await registry.open_blob(name, absent)
    with pytest.raises(ManifestUnknown):
        await registry.manifest(name, absent)
    with pytest.raises(ManifestUnknown):
        await registry.resolve(name, Tag("absent"))


def test_docker_registry_is_read(running: Running) -> None:
    """Everything that a Source has, from a registry of another make."""

    async def story() -> None:
        registry = registry_of(running)
        await pull(registry, NAME, LAYER, MANIFEST)
        assert ["v1", "v2", "v3"] == list(await registry.tags(NAME, 10, None))
        assert ["v2"] == list(await registry.tags(NAME, 1, "v1"))
        with pytest.raises(NameUnknown):
            await registry.tags(Repository("nowhere"), 10, None)
        await registry.close()

    asyncio.run(story())


def test_docker_registry_refuses_strangers(running: Running) -> None:
    """With a wrong password, and without one; the open ones do not mind."""

    async def story() -> None:
        for credentials in (StaticPassword("robot", "wrong"), Anonymous()):
            registry = registry_of(running, credentials)
            if isinstance(running.credentials, Anonymous):
                assert MANIFEST == (await registry.manifest(NAME, Digest.of(MANIFEST))).raw
            else:
                with pytest.raises(UpstreamUnauthorized):
                    await registry.manifest(NAME, Digest.of(MANIFEST))
            await registry.close()

    asyncio.run(story())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SluiceServer]:
    """Sluice with users and tokens, over TLS with HTTP/2."""
    with SluiceServer(with_users(tmp_path_factory.mktemp("guarded") / "data", USERS)) as server:
        client = RegistryClient(server, basic("root"))
        for name in ("team/app", "shared"):
            client.push_image(name, "v1", [GUARDED_BLOB, LAYER])
        client.close()
        yield server


def of_sluice(server: SluiceServer, credentials: CredentialSettings) -> RemoteRegistry:
    address = parse_upstream(server.url)
    return RemoteRegistry(UpstreamSettings("sluice", address, credentials=credentials, ca=server.ca))


def test_sluice_is_read_with_tokens(guarded: SluiceServer) -> None:
    """One of ours before another."""

    async def story() -> None:
        registry = of_sluice(guarded, StaticPassword("reader", "secret"))
        raw = (await registry.manifest_by_tag(NAME, Tag("v1"))).raw
        await pull(registry, NAME, LAYER, raw)
        assert ["v1"] == list(await registry.tags(NAME, 10, None))
        await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("credentials", "name"),
    [
        (Anonymous(), NAME),
        (StaticPassword("reader", "wrong"), NAME),
        (StaticPassword("nobody", "secret"), NAME),
        (StaticPassword("app", "secret"), Repository("team")),
    ],
)
def test_sluice_refuses_strangers(guarded: SluiceServer, credentials: CredentialSettings, name: Repository) -> None:
    """Unknown, unproven, or not allowed there: never taken for a 404."""

    async def story() -> None:
        registry = of_sluice(guarded, credentials)
        with pytest.raises(UpstreamUnauthorized):
            await registry.manifest_by_tag(name, Tag("v1"))
        await registry.close()

    asyncio.run(story())


def test_paused_readers_do_not_hold_up_others(guarded: SluiceServer) -> None:
    """Forty that have begun and stopped, and one that reads to its end; then the forty go on."""

    async def story() -> None:
        registry = of_sluice(guarded, StaticPassword("reader", "secret"))
        paused = [await registry.open_blob(NAME, Digest.of(LAYER)) for _ in range(40)]
        for blob in paused:
            await blob.read_next(1)
        blob = await registry.open_blob(NAME, Digest.of(LAYER))
        assert LAYER == await asyncio.wait_for(blob.read(0, len(LAYER)), 60)
        for one in paused:
            rest = await one.read(1, len(LAYER) - 1)
            assert LAYER[1:] == rest
            one.close()
        await registry.close()

    asyncio.run(story())

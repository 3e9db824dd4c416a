"""TLS and proxies: whom we trust, who we are, and by which way we go."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice.errors import ConfigInvalid, UpstreamError, UpstreamTlsFailed, UpstreamUnreachable
from sluice.pki.authority import Authority, open_authority
from sluice.pki.leaf import issue_client, issue_server, parse_names
from sluice.upstream.registry import RemoteRegistry
from sluice.upstream.settings import UpstreamSettings
from sluice.wire.address import parse_upstream
from upstream.scripted import APP, MANIFEST, MANIFEST_DIGEST, QUICK, Answer, Asked, Scripted, content, plain

NOW = datetime.now(UTC)


class Keys:
    """Two authorities; a server's and a client's certificate of the first, a server's for another name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = open_authority(directory, "ca", "Test CA", NOW)
        self._write("server", authority, "server", ["127.0.0.1", "localhost"])
        self._write("elsewhere", authority, "server", ["elsewhere.test"])
        self._write("client", authority, "client", ["somebody"])
        open_authority(directory, "other", "Other CA", NOW)

    def _write(self, name: str, authority: Authority, kind: str, names: list[str]) -> None:
        if kind == "server":
            leaf = issue_server(authority, parse_names(names), NOW)
        else:
            leaf = issue_client(authority, names[0], NOW)
        (self.directory / f"{name}.crt").write_bytes(leaf.chain_pem)
        (self.directory / f"{name}.key").write_bytes(leaf.key_pem)

    def path(self, name: str) -> Path:
        return self.directory / name

    def server(self, name: str = "server", *, ask_client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("ca.crt"))
        return context


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")
    directory.chmod(0o700)
    return Keys(directory)


def settings_for(server: Scripted, ca: Path | None = None) -> UpstreamSettings:
    return UpstreamSettings("test", parse_upstream(server.url()), ca=ca, limits=QUICK)


def test_a_private_authority_is_trusted_beside_others(keys: Keys, tmp_path: Path) -> None:
    """Also as the second in a bundle with words in between."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(keys.path("other.crt").read_bytes() + b"# ours\n" + keys.path("ca.crt").read_bytes())

    async def story() -> None:
        async with Scripted(plain, keys.server()) as server:
            for ca in (keys.path("ca.crt"), bundle):
                registry = RemoteRegistry(settings_for(server, ca))
                assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
                await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(("ca", "name"), [(None, "server"), ("other.crt", "server"), ("ca.crt", "elsewhere")])
def test_a_stranger_is_not_trusted(ca: str | None, name: str, keys: Keys) -> None:
    """An unknown authority, another one, another name: TLS fails, and nothing is asked."""

    async def story() -> None:
        async with Scripted(plain, keys.server(name)) as server:
            registry = RemoteRegistry(settings_for(server, None if ca is None else keys.path(ca)))
            with pytest.raises(UpstreamTlsFailed, match="certificate"):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert [] == server.asked
            await registry.close()

    asyncio.run(story())


def test_a_client_certificate_opens_the_door(keys: Keys) -> None:
    """Without it the upstream does not talk to us."""

    async def story() -> None:
        async with Scripted(plain, keys.server(ask_client=True)) as server:
            settings = settings_for(server, keys.path("ca.crt"))
            registry = RemoteRegistry(settings)
            with pytest.raises(UpstreamError):
                await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()
            ours = replace(settings, client_certificate=keys.path("client.crt"), client_key=keys.path("client.key"))
            registry = RemoteRegistry(ours)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_a_client_certificate_is_not_shown_elsewhere(keys: Keys) -> None:
    """Storage that we are sent to may ask for one, and gets none."""

    async def story() -> None:
        async with Scripted(plain, keys.server(ask_client=True)) as storage, Scripted(plain, keys.server()) as home:
            home.script = lambda asked: Answer(307, {"Location": storage.url() + asked.path})
            settings = settings_for(home, keys.path("ca.crt"))
            ours = replace(settings, client_certificate=keys.path("client.crt"), client_key=keys.path("client.key"))
            registry = RemoteRegistry(ours)
            with pytest.raises(UpstreamError):
                await content(registry)
            assert [] == storage.asked
            await registry.close()

    asyncio.run(story())


def test_https_never_leads_to_http(keys: Keys) -> None:
    """Neither by redirect nor to a token endpoint."""

    def challenge(asked: Asked) -> Answer:
        return Answer(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:9/token"'})

    async def story() -> None:
        async with Scripted(plain) as bare, Scripted(plain, keys.server()) as home:
            for script in (challenge, lambda asked: Answer(307, {"Location": bare.url() + asked.path})):
                home.script = script
                registry = RemoteRegistry(settings_for(home, keys.path("ca.crt")))
                with pytest.raises(UpstreamError, match="plain HTTP"):
                    await content(registry)
                await registry.close()
            assert [] == bare.asked

    asyncio.run(story())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda keys: {"ca": keys.path("absent")}, "cannot be read: No such file"),
        (lambda keys: {"ca": keys.path("ca.key")}, "holds no certificate"),
        (lambda keys: {"client_certificate": keys.path("client.crt")}, "give both"),
        (lambda keys: {"client_key": keys.path("client.key")}, "give both"),
        (
            lambda keys: {"client_certificate": keys.path("client.crt"), "client_key": keys.path("client.crt")},
            "holds no private key",
        ),
        (
            lambda keys: {"client_certificate": keys.path("client.crt"), "client_key": keys.path("server.key")},
            "does not belong",
        ),
        (lambda keys: {"proxy": "gopher://x"}, "proxy"),
        (lambda keys: {"proxy": "not a URL"}, "proxy"),
    ],
)
def test_a_wrong_file_is_refused_at_start(change: Callable[[Keys], dict[str, Path]], problem: str, keys: Keys) -> None:
    """With its path and what is wrong with it."""
    settings = UpstreamSettings("test", parse_upstream("h"), **change(keys))  # type: ignore[arg-type]
    with pytest.raises(ConfigInvalid, match=problem):
        RemoteRegistry(settings)


class Proxy:
    """A proxy for HTTP and CONNECT that keeps the first line of each request."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.authorizations: list[bool] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.split(b"\r\n")[0].decode())
            self.authorizations.append(b"proxy-authorization: basic dtpw" in head.lower())
            method, target, _ = self.asked[-1].split(" ")
            place = target if method == "CONNECT" else target.split("/")[2]
            host, _, port = place.rpartition(":")
            beyond_reader, beyond_writer = await asyncio.open_connection(host, int(port))
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
            else:
                beyond_writer.write(head.replace(f"http://{place}".encode(), b"", 1))
            await asyncio.gather(_pump(reader, beyond_writer), _pump(beyond_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("spared", [(), ("127.0.0.1",), ("other.test", "127.0.0.0/8")])
def test_a_proxy_is_used_but_for_the_hosts_without(tls: bool, spared: tuple[str, ...], keys: Keys) -> None:
    """CONNECT for https, absolute URLs for http, with the proxy's own credentials."""

    async def story() -> None:
        proxy = Proxy()
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        async with Scripted(plain, keys.server() if tls else None) as server:
            url = f"http://u:p@127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            settings = replace(settings_for(server, keys.path("ca.crt")), proxy=url, no_proxy=spared)
            registry = RemoteRegistry(settings)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            path = f"/v2/team/app/manifests/{MANIFEST_DIGEST}"
            line = f"CONNECT 127.0.0.1:{server.port} HTTP/1.1" if tls else f"GET {server.url()}{path} HTTP/1.1"
            assert ([] if spared else [line]) == proxy.asked
            assert ([] if spared else [True]) == proxy.authorizations
            await registry.close()
        listening.close()
        await proxy.close()

    asyncio.run(story())


@pytest.mark.parametrize("scheme", ["http", "socks5", "https"])
def test_a_dead_proxy_makes_the_upstream_unreachable(scheme: str) -> None:
    """It is not gone round, whatever the environment says."""

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = RemoteRegistry(replace(settings_for(server), proxy=f"{scheme}://127.0.0.1:1"))
            with pytest.raises(UpstreamUnreachable):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert [] == server.asked
            await registry.close()

    asyncio.run(story())


def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is configured is all there is."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def story() -> None:
        async with Scripted(plain) as server:
            registry = RemoteRegistry(settings_for(server))
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())

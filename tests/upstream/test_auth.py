"""Credentials: what is asked for is sent, to nobody else, and no more often than needed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sluice.errors import UpstreamInvalid, UpstreamUnauthorized
from sluice.oci.reference import Repository
from sluice.upstream.settings import DockerConfig, PasswordFile, StaticPassword
from upstream.scripted import (
    APP,
    BLOB,
    MANIFEST,
    MANIFEST_DIGEST,
    NOBODY,
    Answer,
    Asked,
    Scripted,
    content,
    plain,
    registry_at,
)

USER = StaticPassword("robot", "s3cret:with colon")


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Guarded:
    """A registry behind Basic, or behind Bearer with a token endpoint of its own at ``/token``.

    ``password`` is what it takes now. ``posts``: the token endpoint knows POST only. ``lifetime_s``: of its tokens.
    """

    def __init__(self, scheme: str = "bearer", password: str = USER.password) -> None:
        self.scheme = scheme
        self.password: str | None = password
        self.posts = False
        self.lifetime_s: int | None = 300
        self.scope: str | None = None
        self.delay_s = 0.0
        self.valid: set[str] = set()
        self.server = Scripted(self.script)

    async def script(self, asked: Asked) -> Answer:
        if asked.path == "/token":
            await asyncio.sleep(self.delay_s)
            return self.token(asked)
        given = asked.headers.get("authorization", "")
        if self.scheme == "basic":
            if self.password is not None and given == basic(USER.name, self.password):
                return plain(asked)
            return Answer(401, {"WWW-Authenticate": 'Basic realm="here"'})
        if given.removeprefix("Bearer ") in self.valid:
            return plain(asked)
        name = asked.path.removeprefix("/v2/").partition("/manifests")[0].partition("/blobs")[0]
        scope = self.scope or f"repository:{name}:pull"
        challenge = f'Bearer realm="{self.server.url()}/token",service="the service",scope="{scope}"'
        return Answer(401, {"WWW-Authenticate": challenge})

    def token(self, asked: Asked) -> Answer:
        if self.posts and asked.method == "GET":
            return Answer(405)
        wanted = None if self.password is None else basic(USER.name, self.password)
        if asked.method == "GET" and asked.headers.get("authorization") != wanted:
            return Answer(401)
        if asked.method == "POST" and f"password={self.password}".replace(" ", "+").replace(":", "%3A") not in str(
            asked.body
        ):
            return Answer(400, body=b'{"error":"invalid_grant"}')
        token = f"token-{len(self.valid)}"
        self.valid.add(token)
        lifetime = {} if self.lifetime_s is None else {"expires_in": self.lifetime_s}
        return Answer(body=json.dumps({"token": token, **lifetime}).encode())

    @property
    def tokens(self) -> int:
        return sum(1 for asked in self.server.asked if asked.path == "/token")


def test_basic_is_learned_once_and_then_sent_unasked() -> None:
    """One 401 for the whole registry."""

    async def story() -> None:
        guard = Guarded("basic")
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            for _ in range(3):
                assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            expected = [None, *[basic(USER.name, USER.password)] * 3]
            assert expected == [asked.headers.get("authorization") for asked in server.asked]
            await registry.close()

    asyncio.run(story())


def test_one_token_serves_a_repository_and_another_needs_its_own() -> None:
    """Cached per scope; the second repository needs no 401 first."""

    async def story() -> None:
        guard = Guarded()
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            for _ in range(3):
                assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            assert BLOB == await content(registry)
            assert 1 == guard.tokens
            (asked,) = [asked for asked in server.asked if asked.path == "/token"]
            assert ["the service"] == asked.query["service"]
            assert ["repository:team/app:pull"] == asked.query["scope"]
            assert ["robot"] == asked.query["account"]
            before = len(server.asked)
            assert MANIFEST == (await registry.manifest(Repository("other"), MANIFEST_DIGEST)).raw
            assert (2, 2) == (guard.tokens, len(server.asked) - before)
            await registry.close()

    asyncio.run(story())


def test_many_at_once_share_one_token() -> None:
    """Also where the first of them leaves while it is being fetched."""

    async def story() -> None:
        guard = Guarded()
        guard.delay_s = 0.2
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            tasks = [asyncio.create_task(registry.manifest(APP, MANIFEST_DIGEST)) for _ in range(8)]
            while not guard.tokens:
                await asyncio.sleep(0.01)
            tasks[0].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [MANIFEST] * 7 == [getattr(answer, "raw", answer) for answer in answers[1:]]
            assert 1 == guard.tokens
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(("lifetime_s", "used_s"), [(300, 290), (None, 50), (20, 15), (10**9, 86_390)])
def test_a_token_is_used_until_shortly_before_its_end(lifetime_s: int | None, used_s: int) -> None:
    """Then another is fetched before it is missed."""

    async def story() -> None:
        now = [1000.0]
        guard = Guarded()
        guard.lifetime_s = lifetime_s
        async with guard.server as server:
            registry = registry_at(server, credentials=USER, clock=lambda: now[0])
            await registry.manifest(APP, MANIFEST_DIGEST)
            now[0] += used_s - 1
            await registry.manifest(APP, MANIFEST_DIGEST)
            assert 1 == guard.tokens
            now[0] += 1
            before = len(server.asked)
            await registry.manifest(APP, MANIFEST_DIGEST)
            assert (2, 2) == (guard.tokens, len(server.asked) - before)
            await registry.close()

    asyncio.run(story())


def test_a_token_refused_in_mid_life_is_fetched_anew_once() -> None:
    """The request does not fail; where the new one is refused too, it does."""

    async def story() -> None:
        guard = Guarded()
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            await registry.manifest(APP, MANIFEST_DIGEST)
            guard.valid.clear()
            guard.valid.add("another's")
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            assert 2 == guard.tokens
            server.script = lambda asked: guard.token(asked) if asked.path == "/token" else Answer(401)
            with pytest.raises(UpstreamUnauthorized):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 3 == guard.tokens
            await registry.close()

    asyncio.run(story())


def test_anonymous_tokens_need_no_credentials() -> None:
    """As on public registries: no Authorization at the token endpoint, no account."""

    async def story() -> None:
        guard = Guarded()
        guard.password = None
        async with guard.server as server:
            registry = registry_at(server)
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            (asked,) = [asked for asked in server.asked if asked.path == "/token"]
            assert "authorization" not in asked.headers
            assert "account" not in asked.query
            await registry.close()

    asyncio.run(story())


def test_an_endpoint_that_knows_post_only_gets_a_form() -> None:
    """And is not asked by GET again."""

    async def story() -> None:
        guard = Guarded()
        guard.posts = True
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.manifest(Repository("other"), MANIFEST_DIGEST)
            asked = [asked for asked in server.asked if asked.path == "/token"]
            assert ["GET", "POST", "POST"] == [one.method for one in asked]
            assert b"grant_type=password" in asked[1].body
            assert b"scope=repository%3Ateam%2Fapp%3Apull" in asked[1].body
            await registry.close()

    asyncio.run(story())


def test_an_identity_token_is_posted(tmp_path: Path) -> None:
    """As a refresh token, and nowhere else."""

    async def story() -> None:
        guard = Guarded()

        def script(asked: Asked) -> Answer | object:
            if asked.path != "/token":
                return guard.script(asked)
            assert ("POST", "authorization" in asked.headers) == (asked.method, False)
            assert b"grant_type=refresh_token" in asked.body
            assert b"refresh_token=identity" in asked.body
            guard.valid.add("good")
            return Answer(body=b'{"access_token":"good"}')

        server = guard.server
        server.script = script  # type: ignore[assignment]
        async with server:
            config = tmp_path / "config.json"
            config.write_text(json.dumps({"auths": {f"127.0.0.1:{server.port}": {"identitytoken": "identity"}}}))
            registry = registry_at(server, credentials=DockerConfig(config))
            assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_the_upstreams_word_for_a_scope_is_used_and_remembered() -> None:
    """A registry may name its repositories differently from their paths."""

    async def story() -> None:
        guard = Guarded()
        guard.scope = "repository:renamed:pull registry:catalog:*"
        guard.lifetime_s = 300
        async with guard.server as server:
            registry = registry_at(server, credentials=USER)
            await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.manifest(APP, MANIFEST_DIGEST)
            (asked,) = [asked for asked in server.asked if asked.path == "/token"]
            assert guard.scope.split() == asked.query["scope"]
            await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("file_first", [True, False])
def test_rotation_fails_no_request(scheme: str, file_first: bool, tmp_path: Path) -> None:
    """Whether the file changes first or the upstream: until both have, one of the two passwords works, and is found."""

    async def story() -> None:
        guard = Guarded(scheme, "old")
        file = tmp_path / "password"
        file.write_text("old\n")

        def change_file() -> None:
            (tmp_path / "new").write_text("new\n")
            (tmp_path / "new").rename(file)

        def change_upstream() -> None:
            guard.password = "new"
            guard.valid.clear()

        async with guard.server as server:
            registry = registry_at(server, credentials=PasswordFile(USER.name, file))
            steps: list[Callable[[], None]] = [change_file, change_upstream] if file_first else [change_upstream]
            for step in [lambda: None, *steps]:
                step()
                if not file_first and step is change_upstream:
                    change_file()
                for _ in range(3):
                    assert MANIFEST == (await registry.manifest(APP, MANIFEST_DIGEST)).raw
            await registry.close()

    asyncio.run(story())


def test_refused_new_credentials_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The old ones go on working, without a 401 for each request; the log has one line and no password."""

    async def story() -> None:
        guard = Guarded("basic", "old")
        file = tmp_path / "password"
        file.write_text("old")
        async with guard.server as server:
            registry = registry_at(server, credentials=PasswordFile(USER.name, file))
            await registry.manifest(APP, MANIFEST_DIGEST)
            file.write_text("mistyped")
            before = len(server.asked)
            for _ in range(4):
                await registry.manifest(APP, MANIFEST_DIGEST)
            assert 4 + 1 == len(server.asked) - before
            await registry.close()

    asyncio.run(story())
    assert 1 == caplog.text.count("refuses the new credentials")
    assert "mistyped" not in caplog.text


def test_a_password_file_that_goes_is_no_outage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was read is kept, and the log says once that it could not be read again."""

    async def story() -> None:
        guard = Guarded("basic", "old")
        file = tmp_path / "password"
        file.write_text("old")
        async with guard.server as server:
            registry = registry_at(server, credentials=PasswordFile(USER.name, file))
            await registry.manifest(APP, MANIFEST_DIGEST)
            file.unlink()
            await registry.manifest(APP, MANIFEST_DIGEST)
            file.write_text("")
            await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())
    assert 2 == caplog.text.count("going on with the credentials known before")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token":""}', b'{"token":1}', b'{"token":"a\\r\\nX: y"}'])
def test_a_token_endpoint_that_talks_nonsense_is_an_invalid_upstream(answer: bytes) -> None:
    """Nothing of it gets into a header."""

    async def story() -> None:
        guard = Guarded()
        async with guard.server as server:
            server.script = lambda asked: Answer(body=answer) if asked.path == "/token" else guard.script(asked)
            registry = registry_at(server, credentials=USER)
            with pytest.raises(UpstreamInvalid, match="token endpoint"):
                await registry.manifest(APP, MANIFEST_DIGEST)
            await registry.close()

    asyncio.run(story())


def test_wrong_credentials_are_unauthorized() -> None:
    """By Basic, by token, and where there are none."""

    async def story() -> None:
        for scheme in ("basic", "bearer"):
            for credentials in (StaticPassword("robot", "wrong"), NOBODY):
                guard = Guarded(scheme)
                async with guard.server as server:
                    registry = (
                        registry_at(server) if credentials is None else registry_at(server, credentials=credentials)
                    )
                    with pytest.raises(UpstreamUnauthorized):
                        await registry.manifest(APP, MANIFEST_DIGEST)
                    await registry.close()

    asyncio.run(story())

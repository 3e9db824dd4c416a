"""``sluice cache``: over the admin socket of a running server, and without one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sluice.cli.app import run
from sluice.cli.cache import host_platform
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer

REPEATED = 10
LAYERS = [bytes([number]) * 100_000 for number in range(4)]


class Site:
    """A caching server before an upstream, and the command line beside it."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = data
        self.content = UpstreamContent()
        self.content.push_image("team/app", "v1", LAYERS[:2])
        self.content.push_image("team/app", "v2", LAYERS[1:3])
        self._capsys = capsys

    def command(self, *arguments: str, code: int = 0) -> Any:
        """What a command prints, as JSON where it succeeds and as the error's text where not."""
        self._capsys.readouterr()
        output = ("--output", "json") if not code else ()
        assert code == run(["cache", *arguments, *output, "--data", str(self.data)])
        printed = self._capsys.readouterr()
        return printed.err if code else json.loads(printed.out)

    def images(self) -> dict[str, Any]:
        return {row["image"]: row for row in self.command("list")}


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path / "data", capsys)


def serving(site: Site, upstream: UpstreamServer, *flags: str) -> SluiceServer:
    return SluiceServer(site.data, "--mode", "proxy", "--upstream", upstream.address, *flags)


def pull(server: SluiceServer, path: str) -> int:
    client = RegistryClient(server)
    try:
        return client.request("GET", f"/v2/{path}", None, {}).status
    finally:
        client.close()


def test_an_image_is_warmed_listed_pinned_and_purged(site: Site) -> None:
    """Warming brings an image whole, the list says what it takes alone and with others, a pinned one is not purged, and
    all of that is there without a server too."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream) as server:
        (first,) = site.command("warm", "team/app:v1")
        assert (1, 3, 0) == (first["manifests"], first["blobs"], first["unkept"])
        site.command("warm", "team/app:v2")
        upstream.stop()
        assert 200 == pull(server, "team/app/manifests/v1")
        images = site.images()
        assert ["team/app:v1", "team/app:v2"] == sorted(images)
        assert all(row["complete"] and row["bytes"] > 200_000 > row["own_bytes"] for row in images.values())
        assert first["digest"] == site.command("pin", "team/app:v1")["digest"]
        refusal = site.command("purge", "team/app:v1", code=1)
        assert "sluice: team/app:v1 stays, it is pinned: unpin it first\n" == refusal
        status = site.command("status")
        assert ("proxy", 2, 1, 0) == (status["mode"], status["images"], status["pinned"], status["fills_active"])
        assert list(status["upstreams"].values()) in (["reachable"], ["unreachable"])
        purged = site.command("purge", "--all")
        assert (1, 1) == (purged["purged"], purged["kept_count"])
    assert ["team/app:v1"] == list(site.images())
    status = site.command("status")
    assert (None, 1, 1) == (status["mode"], status["images"], status["evicted_images"])
    site.command("unpin", "team/app:v1")
    assert 1 == site.command("purge", "team/app:v1")["purged"]
    assert (0, 0) == (site.command("status")["held_bytes"], len(site.images()))


def test_the_budget_of_the_configuration_holds(site: Site) -> None:
    """``cache.max_bytes`` bounds what a running server keeps; pulling on evicts, and purging frees the rest."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream, "--cache-max-bytes", "350000"):
        site.command("warm", "team/app:v1")
        site.content.push_image("team/app", "v3", [LAYERS[3], bytes(150_000)])
        site.command("warm", "team/app:v3")
        assert ["team/app:v3"] == list(site.images())
        status = site.command("status")
        assert (350_000, 1) == (status["max_bytes"], status["evicted_images"])
        assert status["used_bytes"] <= 350_000


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["warm", "team/app:none"], 1, "none"),
        (["pin", "team/app@sha256:" + "0" * 64], 2, "name a tag, a digest never moves"),
        (["unpin", "team/none:v1"], 1, "does not exist"),
        (["purge", "team/app:none"], 1, "has no image none in the cache"),
        (["purge"], 2, "name one image, or give --all"),
        (["purge", "team/app", "--all"], 2, "name one image, or give --all"),
        (["pin", "Team/App"], 1, "repository name 'Team/App' is invalid"),
    ],
)
def test_what_cannot_be_done_is_said(site: Site, arguments: Sequence[str], code: int, words: str) -> None:
    """A command that cannot be carried out ends with one line that says why."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream):
        assert words in site.command(*arguments, code=code)


def test_a_warm_image_is_whole(site: Site) -> None:
    """When ``warm`` says so: not one of its blobs is still on its way, so that it can be purged at once."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream):
        seen = []
        for _ in range(REPEATED):
            site.command("warm", "team/app:v1")
            seen.append(site.command("purge", "--all")["purged"])
    assert [1] * REPEATED == seen


def test_warming_needs_a_server(site: Site) -> None:
    """Without a server nothing can be fetched, and the command says what to start."""
    site.data.mkdir()
    assert "needs a running server in proxy mode" in site.command("warm", "team/app:v1", code=1)


def test_people_read_columns(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--output json`` each command prints lines for people."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream):
        for arguments in (["warm", "team/app:v1"], ["list"], ["status"], ["purge", "--all"]):
            assert 0 == run(["cache", *arguments, "--data", str(site.data)])
    printed = capsys.readouterr().out
    for words in ("IMAGE", "LAST USED", "team/app:v1", "mode        proxy", "purged 1 images"):
        assert words in printed


def test_the_host_has_a_platform() -> None:
    """What is warmed by default is named as image indexes name it."""
    assert host_platform().startswith("linux/")
    assert "x86_64" not in host_platform()


def test_a_cache_has_no_garbage(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage collection is refused in Proxy mode, for it would take what nobody has a tag for here."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream) as server:
        assert 200 == pull(server, "team/app/manifests/v1")
        assert 1 == run(["gc", "--data", str(site.data)])
        assert "in proxy mode nothing is garbage" in capsys.readouterr().err
        assert ["team/app:v1"] == list(site.images())


def test_hits_in_memory_are_use(site: Site) -> None:
    """An image whose manifest is answered from memory alone is in use, and another one leaves."""
    with UpstreamServer(site.content) as upstream, serving(site, upstream) as server:
        site.command("warm", "team/app:v1")
        before = site.images()["team/app:v1"]["used_at"]
        assert [200] * 3 == [pull(server, "team/app/manifests/v1") for _ in range(3)]
        assert before < site.images()["team/app:v1"]["used_at"]

"""What a configuration names or says for one registry alone, changed while the server runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults.test_switching import Site
from sluice.testing.client import RegistryClient
from sluice.testing.server import SluiceServer
from sluice.testing.upstreams import UpstreamContent, UpstreamServer, make_tls


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Before an upstream that speaks TLS; nothing is configured yet."""
    with ExitStack() as stack:
        content = UpstreamContent()
        content.push_image("team/app", "v1", [b"layer"])
        tls = make_tls(tmp_path / "first")
        upstream = stack.enter_context(UpstreamServer(content, tls=tls))
        file = tmp_path / "sluice.yaml"
        file.write_text("mode: local\n")
        server = stack.enter_context(SluiceServer(tmp_path / "data", "--config", str(file)))
        yield Site(server, file, upstream)


def proxy(site: Site, ca: Path) -> str:
    return f"mode: proxy\nupstream: {{address: {site.upstream.address}, ca: {ca}}}\n"


def put(source: Path, target: Path) -> None:
    """As configuration tools do it: whole or not at all."""
    shutil.copyfile(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def status(site: Site, name: str = "team/app") -> int:
    client = RegistryClient(site.server)
    try:
        return client.request("GET", f"/v2/{name}/manifests/v1").status
    finally:
        client.close()


def test_a_rotated_authority_is_read_again(site: Site, tmp_path: Path) -> None:
    """The upstream comes back with a certificate of another CA: once the file that is named has the new CA in it, the
    upstream is asked again, with nothing restarted and the configuration untouched."""
    ca = tmp_path / "ca.crt"
    assert site.upstream.tls is not None
    put(site.upstream.tls.ca, ca)
    site.configure(proxy(site, ca))
    site.wait_for_mode("proxy")
    answers = [status(site)]
    second = make_tls(tmp_path / "second")
    site.upstream.stop()
    site.upstream.tls = second
    site.upstream.content.push_image("team/other", "v1", [b"another"])
    site.upstream.start()
    answers.append(status(site, "team/other"))
    put(second.ca, ca)
    site.wait_for_log("in force now: the present content of the upstreams' files")
    answers.append(status(site, "team/other"))
    assert [200, 502, 200] == answers


def test_an_authority_that_comes_late_is_waited_for(site: Site, tmp_path: Path) -> None:
    """A configuration that names a file which is not there changes nothing, says which setting and file, and is in
    force as soon as the file is there."""
    ca = tmp_path / "late.crt"
    site.configure(proxy(site, ca))
    site.wait_for_log(f"upstream.ca is {ca}, which cannot be read")
    site.wait_for_metric("sluice_config_valid 0.0")
    assert site.upstream.tls is not None
    put(site.upstream.tls.ca, ca)
    site.wait_for_mode("proxy")
    site.wait_for_metric("sluice_config_valid 1.0")
    assert 200 == status(site)


def test_a_registry_has_rules_of_its_own(site: Site) -> None:
    """Its tags are asked about each time, as its section says, while those of the default upstream stay fresh; the
    default's rules are those of ``cache``."""
    assert site.upstream.tls is not None
    address, ca = site.upstream.address, site.upstream.tls.ca
    site.configure(
        proxy(site, ca)
        + "cache: {tag_fresh_s: 1h}\n"
        + f"registries: {{own.test: {{address: {address}, ca: {ca},"
        + " cache: {tag_fresh_s: 0, revalidate: first}}}\n"
    )
    site.wait_for_mode("proxy")
    client = RegistryClient(site.server)
    said = []
    for name in ("team/app", "own.test/team/app"):
        for _ in range(2):
            answer = client.request("GET", f"/v2/{name}/manifests/v1")
            said.append((answer.status, answer.headers["sluice-cache"]))
    client.close()
    assert [(200, "upstream"), (200, "hit"), (200, "upstream"), (200, "upstream")] == said


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("{tag_fresh_s: never}", ["registries.own.test.cache.tag_fresh_s", "write seconds"]),
        ("{max_bytes: 1GiB}", ["registries.own.test.cache.max_bytes", "not a known key"]),
        ("often", ["registries.own.test.cache"]),
    ],
)
def test_wrong_rules_change_nothing(site: Site, rules: str, words: list[str]) -> None:
    """The setting is named, and what was in force stays."""
    assert site.upstream.tls is not None
    site.configure(proxy(site, site.upstream.tls.ca) + f"registries: {{own.test: {{cache: {rules}}}}}\n")
    site.wait_for_log("the configuration stays as it is")
    said = site.server.log.read_text()
    assert [] == [word for word in words if word not in said], said[-500:]
    site.wait_for_mode("local")

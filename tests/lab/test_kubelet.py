"""The kubelet's way to credentials: which images a plugin is asked about, how, and what becomes of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.isolated import NAME, PASSWORD, USER, Site, needs_lab, site
from sluice.errors import ConfigInvalid, PullFailed, Unavailable
from sluice.lab.cri import Auth
from sluice.lab.images import build_image, find_busybox, push
from sluice.lab.kubelet import PLUGIN_API, matches, provided, pull_as_kubelet, repository_of

PLUGIN = """#!/bin/sh
cat >"$SEEN"
printf '%s ' "$@" >>"$SEEN"
cat "$ANSWER"
exit "${EXIT:-0}"
"""


class Plugin:
    """A plugin that writes down what it is asked and answers what a file says."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.plugins, self.config = directory, directory / "config.yaml"
        self.seen, self.answer = directory / "seen", directory / "answer"
        (directory / "teller").write_text(PLUGIN)
        (directory / "teller").chmod(0o755)
        self.configure()

    def configure(self, name: str = "teller", api: str = PLUGIN_API, kind: str = "CredentialProviderConfig") -> None:
        env = [{"name": "SEEN", "value": str(self.seen)}, {"name": "ANSWER", "value": str(self.answer)}]
        provider = {"name": name, "apiVersion": api, "matchImages": [NAME], "args": ["one", "two"], "env": env}
        provider["defaultCacheDuration"] = "0s"
        document = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": kind, "providers": [provider]}
        self.config.write_text(yaml.safe_dump(document))

    def says(self, logins: dict[str, tuple[str, str]], **others: object) -> None:
        auth = {key: {"username": user, "password": password} for key, (user, password) in logins.items()}
        answer = {"kind": "CredentialProviderResponse", "apiVersion": PLUGIN_API, "cacheKeyType": "Registry"}
        self.answer.write_text(json.dumps({**answer, "cacheDuration": "0s", "auth": auth, **others}))

    def asked(self, reference: str) -> list[Auth]:
        return provided(reference, self.config, self.plugins)


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "plugins")


@pytest.mark.parametrize(
    ("pattern", "repository", "expected"),
    [
        (NAME, f"{NAME}/a/b", True),
        ("registry.sluice.internal", f"{NAME}/a", False),
        ("*.sluice.internal:5001", f"{NAME}/a", True),
        ("*.internal:5001", f"{NAME}/a", False),
        ("reg*.sluice.internal:5001/a", f"{NAME}/a/b", True),
        ("registry.sluice.internal:5001/b", f"{NAME}/a", False),
    ],
)
def test_patterns_mean_what_the_kubelet_means(pattern: str, repository: str, expected: bool) -> None:
    """Globs stay within a domain's part, ports must agree, paths are prefixes."""
    assert expected is matches(pattern, repository)


@pytest.mark.parametrize("suffix", ["", ":1", "@sha256:aa", ":1@sha256:aa"])
def test_plugins_are_asked_about_the_repository(suffix: str) -> None:
    """Neither tag nor digest is in the question, and a port is no tag."""
    assert f"{NAME}/a/b" == repository_of(f"{NAME}/a/b{suffix}")


def test_a_plugin_is_asked_as_the_kubelet_does(plugin: Plugin) -> None:
    """The request comes on its standard input, with the configured arguments and environment; the most specific of the
    logins that match comes first."""
    plugin.says({NAME: ("u", "p"), f"{NAME}/a": ("v", "q"), "elsewhere.test": ("w", "r")})
    assert [Auth("v", "q"), Auth("u", "p")] == plugin.asked(f"{NAME}/a/b:1")
    request, arguments = plugin.seen.read_text().split("}")
    expected = {"kind": "CredentialProviderRequest", "apiVersion": PLUGIN_API, "image": f"{NAME}/a/b"}
    assert (expected, "one two ") == (json.loads(request + "}"), arguments)


def test_a_plugin_is_not_asked_about_others(plugin: Plugin) -> None:
    """An image that no pattern matches is nobody's."""
    assert [] == plugin.asked("docker.io/library/busybox:1")
    assert not plugin.seen.exists()


@pytest.mark.parametrize(
    "others",
    [{"apiVersion": "v1"}, {"kind": "Answer"}, {"cacheKeyType": "Pod"}, {"extra": 1}, {"auth": {NAME: {"token": "t"}}}],
)
def test_an_answer_that_the_kubelet_would_not_read_is_refused(plugin: Plugin, others: dict[str, object]) -> None:
    """Another version, kind or key is an error that names the plugin and repeats nothing."""
    plugin.says({NAME: ("u", "hidden")}, **others)
    with pytest.raises(Unavailable, match="teller answers what is no CredentialProviderResponse") as caught:
        plugin.asked(f"{NAME}/a")
    assert "hidden" not in caught.value.message


def test_a_plugin_that_fails_or_is_missing_is_named(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kubelet would quietly pull without credentials, the laboratory says so."""
    plugin.says({})
    monkeypatch.setenv("EXIT", "3")
    with pytest.raises(Unavailable, match="teller failed"):
        plugin.asked(f"{NAME}/a")
    plugin.configure(name="none")
    with pytest.raises(Unavailable, match="none cannot be run: No such file or directory"):
        plugin.asked(f"{NAME}/a")


@pytest.mark.parametrize("wrong", [{"kind": "Config"}, {"api": "credentialprovider.kubelet.k8s.io/v0"}])
def test_a_configuration_that_stops_a_kubelet_is_refused(plugin: Plugin, wrong: dict[str, str]) -> None:
    """A kubelet reads its configuration at the start, and does not start with a wrong one."""
    plugin.configure(**wrong)
    with pytest.raises(ConfigInvalid):
        plugin.asked(f"{NAME}/a")


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site() as made:
        layout = made.directory / "layout"
        build_image(layout, find_busybox(), "1")
        push(layout, "1", made.destination("demo/hello"))
        yield made


@needs_lab
def test_pulls_with_what_the_plugin_says(here: Site, plugin: Plugin) -> None:
    """Each login is tried until one works; where all are wrong, or there is none, the reason is the runtime's."""
    containerd = here.containerd("node")
    containerd.start()
    try:
        containerd.wait_ready()

        def pull() -> str:
            return pull_as_kubelet(containerd.place.socket, f"{NAME}/demo/hello:1", plugin.config, plugin.plugins)

        for logins in ({NAME: (USER, "wrong")}, {}):
            plugin.says(logins)
            with pytest.raises(PullFailed, match=r"401|authorization failed"):
                pull()
        plugin.says({NAME: (USER, PASSWORD), f"{NAME}/demo": (USER, "wrong")})
        assert pull().startswith("sha256:")
    finally:
        containerd.remove()

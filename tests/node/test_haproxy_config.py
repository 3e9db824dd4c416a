"""HAProxy's language: every word survives, and what a layout holds becomes words and nothing else."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.balanced import Body, wait_until
from node.given import authority, node_layout
from node.layouts import layouts
from sluice.cluster.layout import NodeLayout, Paths
from sluice.errors import ConfigInvalid
from sluice.node.balancer import balancer_sections, config_path, interval_ms, render_balancer, server_name
from sluice.node.haproxy import check_config
from sluice.node.haproxy_config import Section, parse_config, write_config, write_word
from sluice.testing.server import free_port

PEM = "/etc/sluice/secrets/0123456789abcdef.pem"
METACHARACTERS = (
    "a b",
    "#",
    "'",
    '"',
    "\\",
    "$HOME",
    "${HOME}",
    "\n",
    "a\n  bind :80",
    "$(id)",
    "{ path / }",
    "é",
    "\t",
)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(words, min_size=1, max_size=8))
def test_words_survive(line: list[str]) -> None:
    """Any words that are written on a line are read back from it."""
    wanted = (Section("backend", "b", (("option", *line),)),)
    assert wanted == parse_config(write_config(wanted))


def test_haproxy_reads_the_same_words(tmp_path: Path) -> None:
    """HAProxy itself reads each word as it was meant: it serves them, and what comes is what was written."""
    port = free_port()
    answer = ("http-request", "return", "status", "200", "content-type", "text/plain", "string")
    answers = tuple((*answer, word, "if", "{", "path", f"/{number}", "}") for number, word in enumerate(METACHARACTERS))
    limits = (("mode", "http"), ("timeout", "client", "9s"), ("bind", f"127.0.0.1:{port}"))
    path = tmp_path / "haproxy.cfg"
    path.write_bytes(write_config((Section("frontend", "words", (*limits, *answers)),)))
    with subprocess.Popen(["haproxy", "-db", "-f", path], stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: _answers(port), "HAProxy answers")
            assert list(METACHARACTERS) == [_body(port, number) for number in range(len(METACHARACTERS))]
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _body(port: int, number: int) -> str:
    with Body(port, f"/{number}") as body:
        return body.read().decode()


@pytest.mark.parametrize("word", ["", "a\0b"])
def test_words_that_cannot_be(word: str) -> None:
    """HAProxy has no way to hold these."""
    with pytest.raises(ValueError, match="cannot be a word"):
        write_word(word)


@pytest.mark.parametrize("line", ["a 'b", 'a "b', 'a "$HOME"', "a \\q", "a \\x1", "a \\"])
def test_lines_that_are_no_words(line: str) -> None:
    """What HAProxy would refuse, or fill in from its environment, does not read back as words."""
    with pytest.raises(ValueError, match="line 2: "):
        parse_config(f"global\n{line}\n".encode())


@given(layouts())
def test_any_layout(layout: NodeLayout) -> None:
    """Any valid layout renders to a configuration that reads back as meant and holds each value as one word."""
    files = render_balancer(layout, PEM)
    assert bool(files) == ("balancer" in layout.sources)
    if not files:
        return
    sections = parse_config(files[config_path(layout)].content)
    assert balancer_sections(layout, PEM) == sections
    (backend,) = (one for one in sections if one.kind == "backend")
    assert [(server_name(one), one.authority) for one in layout.replicas] == [
        words[:2] for words in backend.all("server")
    ]
    numbers = [words[-1] for words in backend.all("server")]
    assert len(set(numbers)) == len(numbers)
    binds = [words for one in sections if one.kind == "frontend" for words in one.all("bind")]
    assert binds == [(f"127.0.0.1:{layout.balancer.port}",), (f"127.0.0.1:{layout.balancer.metrics_port}",)]


@settings(deadline=None, max_examples=25)
@given(layouts().filter(lambda layout: "balancer" in layout.sources))
def test_haproxy_takes_any_layout(layout: NodeLayout) -> None:
    """HAProxy itself finds no fault with what any valid layout renders to, in any mode and the middle of any switch."""
    _, certificate, key = authority()
    with TemporaryDirectory() as folder:
        pem = Path(folder) / "client.pem"
        pem.write_text(certificate + key)
        here = layout.model_copy(update={"paths": Paths(balancer=folder)})
        files = render_balancer(here, str(pem))
        for path, file in files.items():
            Path(path).write_bytes(file.content)
        check_config(files[config_path(here)].content)


def test_place_in_the_hash_does_not_depend_on_the_others() -> None:
    """A replica keeps its number when others come, go or change their order."""
    hosts = [{"name": f"master-{n}", "host": f"10.0.0.{n}"} for n in range(1, 6)]
    found = [_numbers(node_layout(replicas=chosen)) for chosen in (hosts, hosts[::-1], hosts[2:4])]
    assert found[0] == found[1]
    assert found[2] == {name: found[0][name] for name in found[2]}


def _numbers(layout: NodeLayout) -> dict[str, str]:
    (backend,) = (one for one in balancer_sections(layout, PEM) if one.kind == "backend")
    return {words[0]: words[-1] for words in backend.all("server")}


@pytest.mark.parametrize(
    ("nodes", "replicas", "wanted"),
    [(1, 3, 500), (100, 3, 500), (101, 3, 505), (1000, 3, 5000), (10_000, 5, 50_000), (1, 10, 500), (1, 64, 3200)],
)
def test_checks_are_capped(nodes: int, replicas: int, wanted: int) -> None:
    """Checks come every half second, but never more than 200 a second to a replica or 20 from a node."""
    assert wanted == interval_ms(nodes, replicas)


def test_other_checks_keep_the_cap() -> None:
    """After a failure, and of a replica that is down, checks are bounded in the same proportion."""
    layout = node_layout(balancer={"nodes": 1000})
    (backend,) = (one for one in balancer_sections(layout, PEM) if one.kind == "backend")
    (line,) = backend.all("default-server")
    found = {key: line[line.index(key) + 1] for key in ("inter", "fastinter", "downinter")}
    assert {"inter": "5000ms", "fastinter": "2000ms", "downinter": "5000ms"} == found


def test_haproxy_judges(tmp_path: Path) -> None:
    """HAProxy takes what was rendered for it, and the refusal of anything else names what it did not like."""
    layout = node_layout(paths={"balancer": str(tmp_path)}, replicas=[{"name": "a", "host": "2001:db8::1"}])
    pem = tmp_path / "client.pem"
    _, certificate, key = authority()
    pem.write_text(certificate + key)
    files = render_balancer(layout, str(pem))
    for path, file in files.items():
        Path(path).write_bytes(file.content)
    content = files[config_path(layout)].content
    check_config(content)
    with pytest.raises(ConfigInvalid, match="unknown proxy mode 'htp'"):
        check_config(content.replace(b"mode http", b"mode htp"))
    pem.unlink()
    with pytest.raises(ConfigInvalid, match=r"client\.pem"):
        check_config(content)

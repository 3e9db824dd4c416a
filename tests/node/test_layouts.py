"""A layout's documents: what validates survives being written, everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from node.given import authority, node_layout
from node.layouts import layouts, secrets
from sluice.cluster.documents import dump_document, parse_document
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid

HOSTILE: tuple[object, ...] = (
    'a"\nb = "c', "a\nglobal\n  daemon", "$(touch /tmp/x)", "`id`", "../../etc/passwd", "/etc/../shadow", "a b", "a\tb",
    "'", "a#b", "a;b", "%[env(HOME)]", "${HOME}", "a\\b", "a\0b", "\u2028", "é", "]", "[[host]]", "- a: b", "{}", "*",
    "&a", "", "a" * 5000, "a\n", "a\r", " a", "a ", "\ta", "a\x1f", "a\x85", None, True, 1.5, [], {},
)  # fmt: skip
# Where a layout has text. Quotes, white space and control characters have no meaning in any of these.
TEXTS = (
    ("node",), ("mode",), ("virtual",), ("sources", 0), ("registries", 0, "name"), ("authorities",), ("runner",),
    ("registries", 0, "remote", "address"), ("registries", 0, "remote", "authorities"), ("replicas", 0, "name"),
    ("replicas", 0, "host"), ("upstream", "address"), ("upstream", "authorities"), ("balancer_image",),
    ("replica_pod", "image"), ("replica_pod", "data"), ("replica_pod", "config"),
    ("runtimes", 0), ("paths", "state"), ("paths", "containerd_config"), ("paths", "containerd_hosts"),
    ("paths", "containers"), ("paths", "balancer"), ("paths", "static_pods"), ("paths", "kubelet_credentials"),
    ("paths", "kubelet_plugins"), ("paths", "secrets"),
)  # fmt: skip
# Where none is as good as nothing written.
OPTIONAL = (("registries", 0, "remote", "authorities"), ("upstream", "authorities"), ("balancer_image",))
FULL = node_layout(
    upstream={"address": "https://up.example/team", "authorities": authority()[0]},
    registries=[{"name": "docker.io", "remote": {"address": "hub.example", "authorities": authority()[0]}}],
    balancer_image="registry.example/haproxy:1",
    replica_pod={"image": "registry.example/sluice:1"},
)


def replaced(document: dict[str, Any], place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """A copy of the document with another value at one place."""
    copy = json.loads(json.dumps(document))
    inner: Any = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return dict(copy)


@pytest.mark.parametrize("place", TEXTS, ids=lambda place: ".".join(map(str, place)))
def test_what_means_more_than_itself_is_refused(place: tuple[str | int, ...]) -> None:
    """Every string of a layout refuses what TOML, YAML, HAProxy, a shell or a path could read as something else, and
    what is no text or would have to be trimmed; the error names the field."""
    document = FULL.model_dump(mode="json")
    for text in HOSTILE:
        if text is None and place in OPTIONAL:
            continue
        with pytest.raises(ConfigInvalid, match=r"^layout\.json: " + r"\.".join(map(str, place))):
            parse_document(NodeLayout, json.dumps(replaced(document, place, text)).encode(), "layout.json")


@pytest.mark.parametrize("place", TEXTS, ids=lambda place: ".".join(map(str, place)))
def test_white_space_around_a_good_value_is_refused(place: tuple[str | int, ...]) -> None:
    """It is not taken off: what is written is what is rendered. Around PEM it means nothing, and is written anew."""
    document = FULL.model_dump(mode="json")
    good = dict(leaves(document, ()))[place]
    if place[-1] == "authorities":
        return
    for text in (f"{good}\n", f"{good}\r", f"{good} ", f" {good}", f"\t{good}", f"\ufeff{good}"):
        with pytest.raises(ConfigInvalid, match=r"^layout\.json: " + r"\.".join(map(str, place))):
            parse_document(NodeLayout, json.dumps(replaced(document, place, text)).encode(), "layout.json")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"address:", "upstream.address (None) is empty: write it, or leave out the key"),
        (b"address: true", "upstream.address (True) is not text: put it in quotes"),
        (b"address: 1.5", "upstream.address (1.5) is not text: put it in quotes"),
        (b"address: {a: b}", "upstream.address ({'a': …}) is not text: put it in quotes"),
        (
            b'address: "a\\n"',
            "upstream.address ('a\\n') has white space around it or control characters: leave them out",
        ),
    ],
)
def test_what_is_no_text_is_named_with_its_remedy(raw: bytes, said: str) -> None:
    """Nothing is turned into text: an empty key would be a host called none."""
    with pytest.raises(ConfigInvalid) as caught:
        parse_document(NodeLayout, b"version: 1\nnode: a\nmode: direct\nupstream:\n  " + raw, "layout")
    assert f"layout: {said}" == caught.value.message


def test_every_text_of_a_layout_is_tried() -> None:
    """The places above are all there are."""
    found = {place for place, value in leaves(FULL.model_dump(mode="json"), ()) if isinstance(value, str)}
    assert {place for place in found if not {1} & set(place)} == set(TEXTS)


def leaves(value: object, place: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], object]]:
    """Everything in a document that holds nothing else."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*place, key))]
    if isinstance(value, list):
        return [leaf for at, inner in enumerate(value) for leaf in leaves(inner, (*place, at))]
    return [(place, value)]


@given(layouts())
def test_a_layout_comes_back_from_its_document(layout: NodeLayout) -> None:
    """Whatever validates is the same after being written and read."""
    assert layout == parse_document(NodeLayout, dump_document(layout), "layout")


@given(secrets())
def test_secrets_come_back_from_their_document(held: NodeSecrets) -> None:
    """Any login, in any characters, and the pair of certificate and key."""
    assert held == parse_document(NodeSecrets, dump_document(held), "secrets")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sources": ["upstream"], "upstream": {"address": "a.example"}}, "registries.0.remote is missing"),
        ({"registries": [{"name": "a.example:5000"}, {"name": "a.example_5000"}]}, "registries.1.name is held in"),
        ({"upstream": {"address": "https://10.0.0.11:5003/x"}}, "upstream.address is a replica's"),
        ({"upstream": {"address": "http://127.0.0.1:5001"}}, "upstream.address is a replica's or the balancer's own"),
        (
            {"registries": [{"name": "a.example", "remote": {"address": "10.0.0.12:5003"}}]},
            "registries.0.remote.address is a replica's",
        ),
        (
            {"sources": ["replicas"], "replicas": [{"name": "a", "host": "2001:db8::1"}]},
            "sources have no host that containerd can be told of",
        ),
        (
            {"sources": ["upstream"], "upstream": {"address": "a_b.example"}, "registries": [], "runtimes": ["podman"]},
            "sources have no host that podman can be told of",
        ),
    ],
)
def test_what_cannot_work_together_is_refused(changes: dict[str, object], complaint: str) -> None:
    """A registry with nothing to come from, two registries in one place, and an upstream that is ourselves."""
    document = node_layout().model_dump(mode="json") | changes
    with pytest.raises(ConfigInvalid, match=complaint.replace(".", r"\.")):
        parse_document(NodeLayout, json.dumps(document).encode(), "layout")


def test_a_user_name_has_no_colon() -> None:
    """Basic authentication could not carry it; the message does not show it."""
    _, certificate, key = authority()
    document = {"certificate": certificate, "key": key, "upstream": {"user": "robot:x", "password": "y"}}
    with pytest.raises(ConfigInvalid, match=r"upstream\.user has a colon") as caught:
        parse_document(NodeSecrets, json.dumps(document).encode(), "secrets")
    assert "robot" not in caught.value.message

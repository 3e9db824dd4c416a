"""Hypothesis strategies for layouts and secrets: anything that validates, however unlikely.

``layouts()`` draws every mode, every order of sources that a mode or a switch may have, and every optional part,
through the model itself; so what a suite proves with it holds for what any producer can send. Paths never lie below
each other.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from pydantic import ValidationError

from node.given import authority
from sluice.cluster.layout import Login, NodeLayout, NodeSecrets, Paths
from sluice.config.remote import place_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PATH_LETTERS = LETTERS + LETTERS.upper() + "0123456789._@+-"
PORTS = st.integers(1, 65535)
AUTHORITIES = ("one", "two")

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
# The last label is no number: the name would be read as an IPv4 address.
dns_names = st.builds(
    lambda inner, last: ".".join((*inner, last)),
    st.lists(labels, max_size=3),
    st.from_regex(r"[a-z]([a-z0-9-]{0,4}[a-z0-9])?", fullmatch=True),
)
prefixes = st.lists(st.from_regex(r"[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?", fullmatch=True), min_size=1, max_size=3).map(
    "/".join
)


def _is_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not address.is_unspecified and not address.is_multicast and getattr(address, "scope_id", None) is None


ips = st.ip_addresses().filter(_is_own).map(str)
path_parts = st.text(PATH_LETTERS, min_size=1, max_size=12).filter(lambda part: part not in {".", ".."})
images = st.builds("{}/{}:{}".format, dns_names, labels, st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True))
certificates = st.lists(st.sampled_from(AUTHORITIES), min_size=1, max_size=2, unique=True).map(
    lambda names: "".join(authority(name)[0] for name in names)
)
texts = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1)
logins = st.builds(Login, user=texts.filter(lambda text: ":" not in text), password=texts)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """An upstream's address: with and without scheme, port and prefix."""
    ip = ips.map(lambda one: f"[{one}]" if ":" in one else one)
    port = draw(st.none() | PORTS)
    prefix = draw(st.none() | prefixes)
    scheme = draw(st.sampled_from(["", "http://", "https://"]))
    return f"{scheme}{draw(dns_names | ip)}{'' if port is None else f':{port}'}{'' if prefix is None else f'/{prefix}'}"


remotes = st.fixed_dictionaries({"address": addresses(), "authorities": st.none() | certificates})
registry_names = st.builds(
    lambda host, port: host if port is None else f"{host}:{port}", dns_names.filter(lambda n: "--" not in n), PORTS
) | st.sampled_from(["docker.io", "quay.io", "registry.example:5000"])


@st.composite
def paths(draw: st.DrawFn) -> dict[str, str]:
    """Other places for every file; the first part of each is its own."""
    return {
        key: "/" + "/".join((f"{key}{draw(st.integers(0, 9))}", *draw(st.lists(path_parts, max_size=2))))
        for key in Paths.model_fields
    }


@st.composite
def sources(draw: st.DrawFn, mode: str) -> list[str]:
    """Any order that is not empty; none at all in mode unmanaged."""
    if mode == "unmanaged":
        return []
    return draw(st.lists(st.sampled_from(["balancer", "replicas", "upstream"]), min_size=1, max_size=3, unique=True))


@st.composite
def registries(draw: st.DrawFn, chosen: list[str], virtual: str) -> list[dict[str, Any]]:
    """Mirrored registries that have something to come from."""
    name = registry_names.filter(lambda one: one != virtual)
    found = draw(st.lists(name, max_size=4, unique_by=place_of))
    remote = remotes if chosen == ["upstream"] else st.none() | remotes
    return [{"name": one, "remote": draw(remote), "fallback": draw(st.booleans())} for one in found]


@st.composite
def layouts(draw: st.DrawFn) -> NodeLayout:
    """Any valid layout."""
    mode = draw(st.sampled_from(["direct", "proxy", "local", "unmanaged"]))
    chosen = draw(sources(mode))
    virtual = draw(st.builds("{}:{}".format, dns_names, PORTS))
    replica = st.fixed_dictionaries({"name": dns_names, "host": ips, "port": PORTS})
    fewest = 1 if {"balancer", "replicas"} & set(chosen) else 0
    found = draw(st.lists(replica, min_size=fewest, max_size=4, unique_by=lambda one: (one["host"], one["port"])))
    ports = draw(st.lists(PORTS, min_size=2, max_size=2, unique=True))
    pod = st.fixed_dictionaries({"image": images, "memory_mib": st.integers(64, 4096)})
    values = {
        "version": draw(st.integers(1, 2**53)),
        "node": draw(dns_names),
        "mode": mode,
        "virtual": virtual,
        "sources": chosen,
        "registries": draw(registries(chosen, virtual)),
        "replicas": found,
        "authorities": draw(certificates if fewest else st.none() | certificates),
        "upstream": draw(remotes if "upstream" in chosen else st.none() | remotes),
        "balancer": {"port": ports[0], "metrics_port": ports[1]},
        "balancer_image": draw(images),
        "replica_pod": draw(st.none() | pod),
        "runner": draw(st.sampled_from(["agent", "static-pods"])),
        "runtimes": draw(st.lists(st.sampled_from(["containerd", "cri-o", "podman"]), min_size=1, unique=True)),
        "paths": draw(st.just({}) | paths()),
    }
    try:
        return NodeLayout.model_validate(values)
    except ValidationError as error:
        # Every host happened to be one that only a balancer can reach.
        assume("can be told of" not in str(error))
        raise


@st.composite
def secrets(draw: st.DrawFn) -> NodeSecrets:
    """A node's secrets, with or without a login at the upstream."""
    _, certificate, key = authority(draw(st.sampled_from(AUTHORITIES)))
    return NodeSecrets(certificate=certificate, key=key, upstream=draw(st.none() | logins))

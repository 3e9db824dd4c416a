"""``hosts.toml`` as text: what is in it for each order of sources, and that it says exactly what was meant."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given

from node.given import authority, node_layout, node_secrets
from node.layouts import layouts, secrets
from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.files import FileSpec
from sluice.node.hosts import Host, HostsFile, ca_path, dump_hosts, hosts_path, looked_up, parse_hosts, render_hosts
from sluice.node.secret_files import client_paths
from sluice.node.serialize import NOTICE

CA = authority()[0]
PREFIXED = {"address": "https://up.example/team/proj", "authorities": CA}


def file_of(layout: NodeLayout, registry: str) -> HostsFile:
    """What is rendered for a registry, read back."""
    return parse_hosts(render_hosts(layout, node_secrets())[hosts_path(layout, registry)].content)


def urls_of(layout: NodeLayout, registry: str) -> list[str]:
    """The hosts in the order in which containerd asks them, ``server`` last."""
    found = file_of(layout, registry)
    return [host.url for host in (*found.hosts, found.server)]


def test_a_file_in_full() -> None:
    """Keys of ``server`` before any table, quoted URLs, a table for each host, no key about TLS on the balancer's."""
    layout = node_layout(replicas=[{"name": "m1", "host": "10.0.0.11"}], registries=[])
    certificate, key = client_paths(layout, node_secrets())
    ca = f"/var/lib/sluice/node/ca/{hashlib.sha256(CA.encode()).hexdigest()}.crt"
    text = f'''# {NOTICE}
server = "http://127.0.0.1:5001"
capabilities = [
    "pull",
    "resolve",
]

[host."http://127.0.0.1:5001"]
capabilities = [
    "pull",
    "resolve",
]

[host."https://10.0.0.11:5003"]
capabilities = [
    "pull",
    "resolve",
]
ca = "{ca}"
client = [
    [
        "{certificate}",
        "{key}",
    ],
]
dial_timeout = "2s"
'''
    assert {
        "/etc/containerd/certs.d/registry.sluice.internal_5001_/hosts.toml": FileSpec(text.encode()),
        ca: FileSpec(CA.encode(), early=True),
    } == render_hosts(layout, node_secrets())


BALANCER, FIRST, SECOND, UP = (
    "http://127.0.0.1:5001",
    "https://10.0.0.11:5003",
    "https://10.0.0.12:5003",
    "https://up.example/v2/team/proj",
)


@pytest.mark.parametrize(
    ("sources", "urls"),
    [
        (["balancer", "replicas"], [BALANCER, FIRST, SECOND, BALANCER]),
        (["upstream", "replicas"], [UP, FIRST, SECOND, UP]),
        (["upstream"], [UP, UP]),
        (["balancer"], [BALANCER, BALANCER]),
        (["balancer", "replicas", "upstream"], [BALANCER, FIRST, SECOND, UP, BALANCER]),
        (["upstream", "replicas", "balancer"], [UP, FIRST, SECOND, BALANCER, UP]),
        (["upstream", "balancer", "replicas"], [UP, BALANCER, FIRST, SECOND, UP]),
    ],
)
def test_hosts_stand_in_the_order_of_the_sources(sources: list[str], urls: list[str]) -> None:
    """In every mode and on the way between two; the last resort is our own first host."""
    assert urls == urls_of(
        node_layout(sources=sources, upstream=PREFIXED, registries=[]), "registry.sluice.internal:5001"
    )


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("up.example", Host("https://up.example", ca_path(node_layout(), CA), dial_timeout="6s")),
        ("up.example:443", Host("https://up.example", ca_path(node_layout(), CA), dial_timeout="6s")),
        ("up.example:5000", Host("https://up.example:5000", ca_path(node_layout(), CA), dial_timeout="6s")),
        ("http://up.example", Host("http://up.example")),
        ("http://up.example/a", Host("http://up.example/v2/a", override_path=True)),
        ("docker.io", Host("https://registry-1.docker.io", ca_path(node_layout(), CA), dial_timeout="6s")),
    ],
)
def test_an_upstream_as_a_host(address: str, host: Host) -> None:
    """Its prefix becomes a path; CA and time limit go with HTTPS only; Docker Hub's API is not where its name says."""
    layout = node_layout(sources=["upstream"], upstream={"address": address, "authorities": CA}, registries=[])
    assert HostsFile(host, (host,)) == file_of(layout, layout.virtual)


@pytest.mark.parametrize(
    ("registry", "urls"),
    [
        ({"name": "quay.io"}, [FIRST, FIRST]),
        ({"name": "quay.io", "remote": {"address": "q.example/x"}}, ["https://q.example/v2/x", FIRST, "https://q.example/v2/x"]),
        ({"name": "quay.io", "fallback": True}, [FIRST, "https://quay.io"]),
        ({"name": "docker.io", "fallback": True}, [FIRST, "https://registry-1.docker.io"]),
        (
            {"name": "harbor.example:80", "remote": {"address": "http://m.example"}, "fallback": True},
            ["http://m.example", FIRST, "https://harbor.example:80"],
        ),
        (
            {"name": "harbor.example", "remote": {"address": "http://harbor.example/x"}, "fallback": True},
            ["http://harbor.example/v2/x", FIRST, "http://harbor.example"],
        ),
    ],
)  # fmt: skip
def test_a_mirrored_registry(registry: dict[str, Any], urls: list[str]) -> None:
    """Its own remote in the upstream's place, none where it has none, and the real registry only as the fallback."""
    replicas = [{"name": "m1", "host": "10.0.0.11"}]
    layout = node_layout(sources=["upstream", "replicas"], upstream=PREFIXED, registries=[registry], replicas=replicas)
    assert urls == urls_of(layout, registry["name"])


def test_a_registry_with_its_fallback_alone() -> None:
    """It is listed as a host too: a file with ``server`` alone is refused by versions before 1.7.32."""
    layout = node_layout(sources=["upstream"], upstream=PREFIXED, registries=[{"name": "quay.io", "fallback": True}])
    assert ["https://quay.io", "https://quay.io"] == urls_of(layout, "quay.io")


def test_an_ipv6_address_has_no_table() -> None:
    """Versions 1.x would refuse the whole file: the first such host is the last resort, others have the balancer."""
    six = [{"name": f"m{at}", "host": f"2001:db8::{at}"} for at in (1, 2)]
    layout = node_layout(replicas=[*six, {"name": "m3", "host": "10.0.0.11"}])
    assert [BALANCER, FIRST, "https://[2001:db8::1]:5003"] == urls_of(layout, layout.virtual)
    fallen = node_layout(replicas=six, registries=[{"name": "quay.io", "fallback": True}])
    assert [BALANCER, "https://quay.io"] == urls_of(fallen, "quay.io")


def test_where_containerd_looks() -> None:
    """The first of these directories that exists, in every version; a name without a port has one less."""
    assert ("/c/a.example_5000_", "/c/a.example:5000", "/c/_default") == looked_up("/c", "a.example:5000")
    assert ("/c/docker.io", "/c/_default") == looked_up("/c", "docker.io")


@pytest.mark.parametrize("changes", [{"mode": "unmanaged", "sources": []}, {"runtimes": ["cri-o"]}])
def test_nothing_is_written_for_others(changes: dict[str, Any]) -> None:
    """Mode unmanaged touches nothing, and other runtimes read other files."""
    assert {} == render_hosts(node_layout(**changes), node_secrets())


def test_replicas_need_a_certificate() -> None:
    """Without secrets there is no way to ask the replicas; the balancer alone needs no file of containerd's."""
    with pytest.raises(ConfigInvalid, match="node worker-1 asks replicas"):
        render_hosts(node_layout(), None)
    assert render_hosts(node_layout(sources=["balancer"]), None)


@given(layouts(), secrets())
def test_what_is_rendered_is_read_back(layout: NodeLayout, held: NodeSecrets) -> None:
    """For any layout: one file for each registry, which says what containerd must know and nothing else."""
    files = render_hosts(layout, held)
    if layout.mode == "unmanaged" or "containerd" not in layout.runtimes:
        assert {} == files
        return
    names = [layout.virtual, *(one.name for one in layout.registries)]
    found = {name: parse_hosts(files[hosts_path(layout, name)].content) for name in names}
    authorities = {path for path, spec in files.items() if spec.early}
    named = {host.ca for file in found.values() for host in (*file.hosts, file.server) if host.ca is not None}
    assert named == authorities
    assert len(files) == len(found) + len(authorities)
    for path in authorities:
        assert path == ca_path(layout, files[path].content.decode())
    for name, file in found.items():
        assert file == parse_hosts(dump_hosts(file))
        assert file.hosts
        check_hosts(layout, held, name, file)


def check_hosts(layout: NodeLayout, held: NodeSecrets, name: str, file: HostsFile) -> None:
    """Nothing but the sources is asked, ``server`` included, and none of it wrongly."""
    mirrored = next((one for one in layout.registries if one.name == name), None)
    fallback = mirrored is not None and mirrored.fallback
    assert file.server in file.hosts or fallback or "[" in file.server.url
    assert not any("]" in host.url for host in file.hosts)
    assert len(file.hosts) == len({host.url for host in file.hosts})
    for host in (*file.hosts, file.server):
        if host.url.startswith("http://"):
            assert (None, None, None) == (host.ca, host.client, host.dial_timeout)
        else:
            assert host.client in {None, client_paths(layout, held)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        'server = "https://a.example"\ncapabilities = ["pull", "resolve"]\n',
        'server = "https://a"\ncapabilities = ["pull"]\n[host."https://a"]\ncapabilities = ["pull", "resolve"]\n',
        'server = "a"\ncapabilities = ["pull", "resolve"]\n[host."https://a"]\ncapabilities = ["pull", "resolve"]\n',
        'capabilities = ["pull", "resolve"]\n[host."https://a"]\ncapabilities = ["pull", "resolve"]\n',
        'server = "https://a"\ncapabilities = ["pull", "resolve"]\n[host."https://a"]\nskip_verify = true\n',
        *(
            f'server = "https://a"\ncapabilities = ["pull", "resolve"]\n[host."https://a"]\n'
            f'capabilities = ["pull", "resolve"]\n{line}\n'
            for line in (
                "skip_verify = true", "ca = 1", 'client = "a"', 'client = [["a"]]', "client = []", "override_path = 1",
                "override_path = false", "dial_timeout = 2", '[host."https://a".header]\nAuthorization = "x"',
            )
        ),
    ],
)  # fmt: skip
def test_nothing_else_is_taken_for_ours(text: str) -> None:
    """The parser knows what is written here and refuses the rest."""
    with pytest.raises(ConfigInvalid, match=r"^hosts\.toml "):
        parse_hosts(text.encode())

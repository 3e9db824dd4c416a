"""Containerd's ``hosts.toml``: where it gets the images of the virtual address and of each mirrored registry. PURE.

From a layout to files, in the layout's order of sources: the balancer on loopback, the replicas with the node's
certificate, the upstream itself. Facts of containerd 1.6 to 2.3 that the format rests on:

- The file is read anew for each pull, and one that cannot be read means "go to the real registry". So every file has a
  ``[host]`` table (without one, versions up to 1.7.31 refuse the file), and no key that any of the versions refuses.
- ``server`` is always asked last and left out means the real registry: here it is the first host again.
- The TOML parser of 1.x takes the first ``]`` for the end of a table's name, even in quotes, and refuses the file. So
  an IPv6 address has no table; the first one is ``server``, and the balancer reaches them all.
- A CA file that is missing fails every pull of that registry. So their names are made from their content, they are
  written before the files that name them, and a file in use never changes.
- Keys about TLS on an ``http`` host make later versions try HTTPS first; 2.0 takes even ``dial_timeout`` for one.
- ``dial_timeout`` is known from 2.0.7 and passed over before.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache

import tomli_w

from sluice.cluster.layout import REGISTRIES_MAX, MirroredRegistry, NodeLayout, NodeSecrets, Remote
from sluice.config.remote import DOCKER_HUB, DOCKER_HUB_HOST
from sluice.errors import ConfigInvalid
from sluice.node.files import Files, FileSpec
from sluice.node.secret_files import client_paths
from sluice.node.serialize import NOTICE

FILE_NAME = "hosts.toml"
CAPABILITIES = ["pull", "resolve"]  # "referrers" would make versions before 2.2 refuse the whole file
DIAL_TIMEOUT = "2s"
"""How long a connection to a machine of the cluster may take: one that is cut off costs two seconds, not thirty."""
UPSTREAM_DIAL_TIMEOUT = "6s"
"""The same for what is called by name, with the look-up: a dead name server before a living one costs five of them."""


@dataclass(frozen=True, slots=True)
class Host:
    """One address that containerd asks. ``ca`` is a file's path, ``client`` those of a certificate and its key.
    ``override_path``: the URL's path is where the API begins."""

    url: str
    ca: str | None = None
    client: tuple[str, str] | None = None
    override_path: bool = False
    dial_timeout: str | None = None


@dataclass(frozen=True, slots=True)
class HostsFile:
    """A ``hosts.toml``: ``hosts`` are asked in their order, then ``server``."""

    server: Host
    hosts: tuple[Host, ...]


def render_hosts(layout: NodeLayout, secrets: NodeSecrets | None) -> Files:
    """The files of this node, with the CA files that they name; none where containerd does not run.

    Raises ConfigInvalid where the replicas are a source and there are no secrets to ask them with.
    """
    if layout.mode == "unmanaged" or "containerd" not in layout.runtimes:
        return {}
    files: dict[str, FileSpec] = {}
    hosts = _Hosts(layout, secrets, files)
    for registry in (None, *layout.registries):
        name = layout.virtual if registry is None else registry.name
        path = hosts_path(layout, name)
        files[path] = FileSpec(dump_hosts(hosts.file(registry)))
    return files


def hosts_path(layout: NodeLayout, registry: str) -> str:
    """The file for the images of ``registry`` (``host`` or ``host:port``)."""
    return f"{looked_up(layout.paths.containerd_hosts, registry)[0]}/{FILE_NAME}"


def looked_up(root: str, registry: str) -> tuple[str, ...]:
    """The directories of which containerd takes the first that exists, whatever is in it.

    ``host_port_`` goes before ``host:port`` in every version (``hostPaths`` in remotes/docker/config), so that is ours.
    """
    host, colon, port = registry.rpartition(":")
    plain = f"{root}/{registry}"
    return (f"{root}/{host}_{port}_", plain, f"{root}/_default") if colon else (plain, f"{root}/_default")


def ca_path(layout: NodeLayout, certificates: str) -> str:
    """Where a runtime's CA file with this content is."""
    return f"{layout.paths.state}/ca/{hashlib.sha256(certificates.encode()).hexdigest()}.crt"


class _Hosts:
    """The hosts of one layout's sources; puts the CA files that they name into ``files``."""

    def __init__(self, layout: NodeLayout, secrets: NodeSecrets | None, files: dict[str, FileSpec]) -> None:
        self._layout = layout
        self._files = files
        self._authorities: dict[str, str] = {}  # by path; some are only those of hosts that have no table
        self._balancer = Host(f"http://127.0.0.1:{layout.balancer.port}")
        self._replicas = self._all_replicas(secrets) if "replicas" in layout.sources else ()

    def file(self, registry: MirroredRegistry | None) -> HostsFile:
        """The file of a registry; None is the virtual address."""
        remote = self._layout.upstream if registry is None else registry.remote
        hosts: list[Host] = []
        for source in self._layout.sources:
            match source:
                case "balancer":
                    hosts.append(self._balancer)
                case "replicas":
                    hosts += self._replicas
                case "upstream" if remote is not None:
                    hosts.append(self._remote(remote))
        tables = [host for host in hosts if "[" not in host.url]
        real = self._real(registry) if registry is not None and registry.fallback else None
        server = real or next((host for host in hosts if host not in tables), hosts[0])
        file = HostsFile(server, tuple(tables) or (server,))
        for host in (*file.hosts, file.server):
            if host.ca is not None:
                self._files[host.ca] = FileSpec(self._authorities[host.ca].encode(), early=True)
        return file

    def _all_replicas(self, secrets: NodeSecrets | None) -> tuple[Host, ...]:
        if secrets is None:
            raise ConfigInvalid(
                f"node {self._layout.node} asks replicas, which want its certificate, and there are no secrets: "
                "name the file with certificate and key"
            )
        ca, client = self._ca(self._layout.authorities), client_paths(self._layout, secrets)
        return tuple(
            Host(f"https://{one.authority}", ca, client, dial_timeout=DIAL_TIMEOUT) for one in self._layout.replicas
        )

    def _remote(self, remote: Remote) -> Host:
        """Stock containerd can put a path before a repository's: that is what an upstream's prefix is."""
        host = self._origin(remote)
        prefix = remote.parsed.prefix
        if prefix:
            host = replace(host, url=f"{host.url}/v2/{prefix}", override_path=True)
        return replace(host, dial_timeout=UPSTREAM_DIAL_TIMEOUT) if remote.parsed.scheme == "https" else host

    def _real(self, registry: MirroredRegistry) -> Host:
        """The registry that bears the name; where ``remote`` is at that very address, as ``remote`` says."""
        remote = registry.remote
        if remote is not None and registry.name == remote.parsed.authority:
            return self._origin(remote)
        return Host(f"https://{DOCKER_HUB_HOST if registry.name == DOCKER_HUB else registry.name}")

    def _origin(self, remote: Remote) -> Host:
        address = remote.parsed
        # Containerd knows where Docker Hub is only while nobody tells it an address.
        authority = DOCKER_HUB_HOST if address.authority == DOCKER_HUB else address.authority
        ca = self._ca(remote.authorities) if address.scheme == "https" else None
        return Host(f"{address.scheme}://{authority}", ca)

    def _ca(self, certificates: str | None) -> str | None:
        if certificates is None:
            return None
        path = ca_path(self._layout, certificates)
        self._authorities[path] = certificates
        return path


@lru_cache(REGISTRIES_MAX + 1)
def dump_hosts(file: HostsFile) -> bytes:
    """The file's bytes. Raises ConfigInvalid where they would not be read back as ``file``."""
    document: dict[str, object] = {"server": file.server.url, **_keys(file.server)}
    document["host"] = {host.url: _keys(host) for host in file.hosts}
    raw = f"# {NOTICE}\n{tomli_w.dumps(document)}".encode()
    if parse_hosts(raw) != file:
        raise ConfigInvalid(f"{FILE_NAME} would not be read back as it was meant: report this with the node's layout")
    return raw


def parse_hosts(raw: bytes) -> HostsFile:
    """Read what ``dump_hosts`` wrote; raises ConfigInvalid for anything that it does not write."""
    try:
        document = tomllib.loads(raw.decode())
    except ValueError as error:
        raise ConfigInvalid(f"{FILE_NAME} is no TOML: {error}") from None
    tables = document.pop("host", None)
    if not isinstance(tables, dict) or not tables:
        raise ConfigInvalid(f"{FILE_NAME} has no [host] table, without which containerd before 1.7.32 refuses it")
    server = document.pop("server", None)
    return HostsFile(_host(server, document), tuple(_host(url, keys) for url, keys in tables.items()))


def _keys(host: Host) -> dict[str, object]:
    keys: dict[str, object] = {"capabilities": CAPABILITIES}
    if host.ca is not None:
        keys["ca"] = host.ca
    if host.client is not None:
        keys["client"] = [list(host.client)]
    if host.override_path:
        keys["override_path"] = True
    if host.dial_timeout is not None:
        keys["dial_timeout"] = host.dial_timeout
    return keys


def _host(url: object, keys: object) -> Host:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or not isinstance(keys, dict):
        raise ConfigInvalid(f"{FILE_NAME} has {ascii(url)[:80]} where a host's URL and its keys should be")
    client = keys.get("client")
    pair = client[0] if isinstance(client, list) and len(client) == 1 else None
    host = Host(
        url,
        _text(keys.get("ca")),
        (pair[0], pair[1]) if isinstance(pair, list) and len(pair) == 2 and all(map(_text, pair)) else None,
        keys.get("override_path") is True,
        _text(keys.get("dial_timeout")),
    )
    if _keys(host) != keys:
        raise ConfigInvalid(f"{FILE_NAME} has keys of {url} that Sluice does not write: {ascii(keys)[:160]}")
    return host


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

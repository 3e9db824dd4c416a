"""CRI-O's and podman's files: the same sources as in ``hosts``, in the words of containers/image. PURE.

``registries.conf.d/50-sluice.conf`` replaces the beginning of an image's name by a ``location``: mirrors in their
order, then the registry's own, which would be the real one. Here the last source takes its place, unless the fallback
is wanted. A replica and the balancer know a mirrored registry by the beginning of the path, since these runtimes do
not say ``?ns=``. ``certs.d/<host:port>`` holds what TLS with one host needs; its names are fixed, so in the instant
in which a certificate and its key are replaced the replicas cannot be asked; the balancer, which is asked first, can.

Containers-registries.conf(5), containers-certs.d(5), containers-auth.json(5). Podman reads the files for each
command, CRI-O on SIGHUP or with ``auto_reload_registries``.

**Logins.** These runtimes send a pod's credentials to no other host than the image's own. ``containers-auth.json``
has the upstream's for Direct mode; CRI-O takes it by ``global_auth_file``, podman by ``--authfile``. It is not forced
on them, because either would then forget the user's own logins; without it the upstream refuses and the replicas,
which log in themselves, serve.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from sluice.cluster.layout import MirroredRegistry, NodeLayout, NodeSecrets, Remote, Replica
from sluice.cluster.values import can_name
from sluice.config.remote import DOCKER_HUB, place_of
from sluice.errors import ConfigInvalid
from sluice.node.files import PRIVATE_MODE, Files, FileSpec
from sluice.node.serialize import dump_toml

RUNTIMES = frozenset({"cri-o", "podman"})
DOCKER_HUB_ALIASES = frozenset({"index.docker.io"})  # read as docker.io by containers/image, and refused when written
AUTH_NAME = "containers-auth.json"


@dataclass(frozen=True, slots=True)
class _Location:
    """Where images are: ``host[:port][/path]``; ``insecure`` allows plain HTTP."""

    location: str
    insecure: bool = False

    def keys(self) -> dict[str, object]:
        return {"location": self.location, **({"insecure": True} if self.insecure else {})}


def render_containers(layout: NodeLayout, secrets: NodeSecrets | None) -> Files:
    """The files of this node; none where neither CRI-O nor podman runs.

    Raises ConfigInvalid where the replicas are a source and there are no secrets to ask them with.
    """
    if layout.mode == "unmanaged" or not RUNTIMES & set(layout.runtimes):
        return {}
    path = registries_path(layout)
    tables = [_registry(layout, one) for one in (None, *layout.registries)]
    files = {path: FileSpec(dump_toml({"registry": tables}, path))}
    files |= _authorities(layout)
    if "replicas" in layout.sources:
        files |= _identities(layout, secrets)
    if layout.upstream is not None and "upstream" in layout.sources and secrets is not None and secrets.upstream:
        files[auth_path(layout)] = FileSpec(_auth(layout.upstream, secrets), PRIVATE_MODE, early=True)
    return files


def registries_path(layout: NodeLayout) -> str:
    """The drop-in; one of a later name goes before it where both name the same registry."""
    return f"{layout.paths.containers}/registries.conf.d/50-sluice.conf"


def auth_path(layout: NodeLayout) -> str:
    """The login file for ``--authfile`` and ``global_auth_file``."""
    return f"{layout.paths.secrets}/{AUTH_NAME}"


def _registry(layout: NodeLayout, registry: MirroredRegistry | None) -> dict[str, object]:
    prefix = layout.virtual if registry is None else registry.name
    found = _locations(layout, registry)
    if registry is not None and registry.fallback:
        found.append(_real(registry))
    *mirrors, last = found
    table: dict[str, object] = {"prefix": prefix, **last.keys()}
    if mirrors:
        table["mirror"] = [one.keys() for one in mirrors]
    return table


def _locations(layout: NodeLayout, registry: MirroredRegistry | None) -> list[_Location]:
    remote = layout.upstream if registry is None else registry.remote
    path = "" if registry is None else f"/{place_of(registry.name)}"
    found: list[_Location] = []
    for source in layout.sources:
        match source:
            case "balancer":
                found.append(_Location(f"127.0.0.1:{layout.balancer.port}{path}", insecure=True))
            case "replicas":
                found += [_Location(f"{one.authority}{path}") for one in _replicas(layout)]
            case "upstream" if remote is not None and _named(remote.parsed.host):
                found.append(_Location(_location(remote), remote.parsed.scheme == "http"))
    return found


def _named(host: str) -> bool:
    return can_name("podman", host)


def _replicas(layout: NodeLayout) -> list[Replica]:
    """Those that can be written down: one location that cannot, and none of the registry's is asked."""
    return [one for one in layout.replicas if _named(one.host)]


def _location(remote: Remote) -> str:
    prefix = remote.parsed.prefix
    return f"{_authority(remote)}/{prefix}" if prefix else _authority(remote)


def _authority(remote: Remote) -> str:
    """A host without dot or port would be read as the first part of a path below Docker Hub."""
    address = remote.parsed
    if address.host in DOCKER_HUB_ALIASES:
        return DOCKER_HUB
    named = "." in address.authority or ":" in address.authority
    return address.authority if named else f"{address.host}:{address.port}"


def _real(registry: MirroredRegistry) -> _Location:
    """The registry that bears the name; in plain HTTP only where ``remote`` is at that very address and says so."""
    remote = registry.remote
    insecure = remote is not None and remote.parsed.authority == registry.name and remote.parsed.scheme == "http"
    return _Location(registry.name, insecure)


def _authorities(layout: NodeLayout) -> Files:
    """A CA file for each host: one, since old versions forget all but the last of a directory."""
    trusted: dict[str, dict[str, None]] = {}
    if "replicas" in layout.sources and layout.authorities is not None:
        for replica in _replicas(layout):
            trusted.setdefault(replica.authority, {})[layout.authorities] = None
    for remote in _remotes(layout):
        if remote.authorities is not None and remote.parsed.scheme == "https":
            trusted.setdefault(_authority(remote), {})[remote.authorities] = None
    return {
        f"{_certs(layout, authority)}/ca.crt": FileSpec("".join(found).encode(), early=True)
        for authority, found in trusted.items()
    }


def _remotes(layout: NodeLayout) -> list[Remote]:
    """Those that a location names: as a source, or as the fallback that bears the name."""
    used = "upstream" in layout.sources
    found = [layout.upstream] if used else []
    for one in layout.registries:
        if one.remote is not None and (used or (one.fallback and one.remote.parsed.authority == one.name)):
            found.append(one.remote)
    return [one for one in found if one is not None and _named(one.parsed.host)]


def _identities(layout: NodeLayout, secrets: NodeSecrets | None) -> Files:
    if secrets is None:
        raise ConfigInvalid(
            f"node {layout.node} asks replicas, which want its certificate, and there are no secrets: "
            "name the file with certificate and key"
        )
    files: dict[str, FileSpec] = {}
    for replica in _replicas(layout):
        directory = _certs(layout, replica.authority)
        files[f"{directory}/client.cert"] = FileSpec(secrets.certificate.encode(), PRIVATE_MODE, early=True)
        files[f"{directory}/client.key"] = FileSpec(secrets.key.encode(), PRIVATE_MODE, early=True)
    return files


def _certs(layout: NodeLayout, authority: str) -> str:
    return f"{layout.paths.containers}/certs.d/{authority}"


def _auth(upstream: Remote, secrets: NodeSecrets) -> bytes:
    assert secrets.upstream is not None
    login = f"{secrets.upstream.user}:{secrets.upstream.password}"
    entry = {"auth": base64.b64encode(login.encode()).decode()}
    return json.dumps({"auths": {_location(upstream): entry}}, indent=2).encode() + b"\n"

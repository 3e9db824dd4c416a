"""The layout of one node: where its runtimes get images from. The contract between who decides and who applies.

``node`` renders every file of a node from a ``NodeLayout`` and the ``NodeSecrets`` beside it. Whoever makes a layout
validates it with this very code, so that a value which the node would refuse never leaves its producer. A mode is no
more than the order of ``sources``; in the middle of a switch they are those of both modes, the new ones first.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sluice.cluster.values import (
    Certificates,
    HostAddress,
    Image,
    NodeName,
    NodePath,
    PrivateKey,
    RegistryName,
    Secret,
    VirtualAddress,
    can_name,
    is_pair,
)
from sluice.config.remote import place_of
from sluice.config.section import PrivateSection, Section, conflict
from sluice.config.values import Count, Upstream
from sluice.wire.address import UpstreamAddress, parse_upstream

REGISTRIES_MAX = 200
REPLICAS_MAX = 64
NODES_MAX = 10_000
VERSION_MAX = 2**53
BALANCER_PORT = 5001
METRICS_PORT = 5004
REPLICA_PORT = 5003
"""Where replicas serve nodes, known by their certificates; nobody is asked for a password there."""

Mode = Literal["direct", "proxy", "local", "unmanaged"]
SourceKind = Literal["balancer", "replicas", "upstream"]
"""``balancer``: the one on this node; ``replicas``: these themselves, in the layout's order; ``upstream``: the registry
itself, each mirrored registry's own for its images."""
Runtime = Literal["containerd", "cri-o", "podman"]
Runner = Literal["agent", "static-pods"]
Port = Annotated[Count, Field(ge=1, le=65535)]


class Replica(Section):
    """A registry on a control-plane node: a caching one, a local one, or the in-cluster proxy of Direct mode."""

    name: NodeName
    host: HostAddress
    port: Port = REPLICA_PORT

    @property
    def authority(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Remote(Section):
    """A registry outside, as a runtime is to reach it. ``authorities`` vouch for it besides the system's."""

    address: Upstream
    authorities: Certificates | None = None

    @property
    def parsed(self) -> UpstreamAddress:
        """The address in its parts."""
        return parse_upstream(self.address)


class MirroredRegistry(Section):
    """A registry whose images keep their names (``docker.io``).

    ``remote`` is where the source ``upstream`` finds it; without one, that source is left out for it. ``fallback``: the
    runtime may go to the real registry when all sources fail.
    """

    name: RegistryName
    remote: Remote | None = None
    fallback: bool = False


class BalancerLayout(Section):
    """HAProxy on this node. ``nodes`` check the replicas, which bounds how often each one may."""

    port: Port = BALANCER_PORT
    metrics_port: Port = METRICS_PORT
    nodes: Annotated[Count, Field(ge=1, le=NODES_MAX)] = 1

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.port == self.metrics_port:
            raise conflict("metrics_port", "is the balancer's own port: choose another")
        return self


class ReplicaPod(Section):
    """The registry replica that this control-plane node runs as a static pod."""

    image: Image
    host: HostAddress
    data: NodePath = "/opt/sluice/registry"
    config: NodePath = "/etc/sluice/registry.yaml"
    memory_mib: Annotated[Count, Field(ge=64, le=1 << 20)] = 512
    cpu_millis: Annotated[Count, Field(ge=10, le=1 << 20)] = 100


class Paths(Section):
    """Where the node's programs look. The defaults are Debian's and kubeadm's."""

    state: NodePath = "/var/lib/sluice/node"  # our record, backups, the last good layout; also CA files
    containerd_config: NodePath = "/etc/containerd/config.toml"
    containerd_hosts: NodePath = "/etc/containerd/certs.d"
    containers: NodePath = "/etc/containers"  # CRI-O's and podman's
    balancer: NodePath = "/etc/sluice/balancer"
    static_pods: NodePath = "/etc/kubernetes/manifests"
    kubelet_credentials: NodePath = "/etc/kubernetes/sluice-credential-provider.yaml"
    kubelet_plugins: NodePath = "/usr/local/bin"
    secrets: NodePath = "/etc/sluice/secrets"  # client certificate and key, upstream credentials; 0700


class NodeLayout(Section):
    """Everything about one node. ``version`` grows with every change and comes back as the version applied.

    ``virtual`` names every image of the cluster. ``authorities`` vouch for the replicas: two in the middle of a CA's
    rotation. ``upstream`` is where ``virtual``'s images come from in Direct mode.
    """

    version: Annotated[Count, Field(ge=1, le=VERSION_MAX)]
    node: NodeName
    mode: Mode
    virtual: VirtualAddress = "registry.sluice.internal:5001"
    sources: Annotated[tuple[SourceKind, ...], Field(max_length=3)] = ()
    registries: Annotated[tuple[MirroredRegistry, ...], Field(max_length=REGISTRIES_MAX)] = ()
    replicas: Annotated[tuple[Replica, ...], Field(max_length=REPLICAS_MAX)] = ()
    authorities: Certificates | None = None
    upstream: Remote | None = None
    balancer: BalancerLayout = BalancerLayout()
    balancer_image: Image | None = None
    replica_pod: ReplicaPod | None = None
    runner: Runner = "agent"
    runtimes: tuple[Runtime, ...] = ("containerd",)
    paths: Paths = Paths()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.mode == "unmanaged":
            if self.sources:
                raise conflict("sources", "must be empty in mode unmanaged, which touches nothing")
            return self
        if not self.sources:
            raise conflict("sources", f"is empty: mode {self.mode} needs at least one of balancer, replicas, upstream")
        self._check_unique()
        self._check_sources()
        return self

    def _check_unique(self) -> None:
        taken: dict[str, list[str]] = {
            "sources": list(self.sources),
            "registries": [self.virtual, *(one.name for one in self.registries)],
            "replicas": [one.authority for one in self.replicas],
            "runtimes": list(self.runtimes),
        }
        for key, values in taken.items():
            twice = next((value for at, value in enumerate(values) if value in values[:at]), None)
            if twice is not None:
                raise conflict(key, f"has {twice!r} twice: leave one out")

    def _check_sources(self) -> None:
        if {"balancer", "replicas"} & set(self.sources):
            if not self.replicas:
                raise conflict("replicas", "is empty, and sources name the balancer or the replicas: list them")
            if self.authorities is None:
                raise conflict("authorities", "is missing: write the CA certificates of the replicas as PEM")
        if "upstream" in self.sources and self.upstream is None:
            raise conflict("upstream", "is missing, and sources name it: write its address")
        self._check_registries()
        self._check_loops()
        self._check_runtimes()
        if self.runner == "static-pods" and "balancer" in self.sources and self.balancer_image is None:
            raise conflict("balancer_image", "is missing: static pods need the balancer's image")

    def _check_registries(self) -> None:
        places: dict[str, str] = {}
        for at, registry in enumerate(self.registries):
            if set(self.sources) == {"upstream"} and registry.remote is None and not registry.fallback:
                raise conflict(f"registries.{at}.remote", "is missing, and the only source is upstream: write it")
            other = places.setdefault(place_of(registry.name), registry.name)
            if other != registry.name:
                raise conflict(f"registries.{at}.name", f"is held in the same place as {other}: leave one out")

    def _check_loops(self) -> None:
        """An upstream that is a replica or the balancer would ask itself, and stand twice among a file's hosts."""
        own = {(one.host, one.port) for one in self.replicas} | {("127.0.0.1", self.balancer.port)}
        remotes = {"upstream": self.upstream}
        remotes |= {f"registries.{at}.remote": one.remote for at, one in enumerate(self.registries)}
        for key, remote in remotes.items():
            if remote is not None and (remote.parsed.host, remote.parsed.port) in own:
                raise conflict(f"{key}.address", "is a replica's or the balancer's own: write where the registry is")

    def _check_runtimes(self) -> None:
        """Some hosts cannot stand in a runtime's files; the balancer reaches every one."""
        if "balancer" in self.sources:
            return
        for runtime in self.runtimes:
            replicas = "replicas" in self.sources and any(can_name(runtime, one.host) for one in self.replicas)
            for remote, fallback in ((self.upstream, False), *((one.remote, one.fallback) for one in self.registries)):
                upstream = remote if "upstream" in self.sources else None
                if not (replicas or fallback or (upstream and can_name(runtime, upstream.parsed.host))):
                    raise conflict(
                        "sources",
                        f"have no host that {runtime} can be told of (no IPv6 address"
                        f"{'' if runtime == 'containerd' else ', no name with _'}): add the balancer",
                    )


class Login(PrivateSection):
    """A user of the upstream. Basic authentication ends the user's name at the first colon (RFC 7617 section 2)."""

    user: Secret
    password: Secret = Field(repr=False)

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        if ":" in self.user:
            raise conflict("user", "has a colon, which no user name can have: write the name without the password")
        return self


class NodeSecrets(PrivateSection):
    """What a node keeps to itself. ``certificate`` and ``key`` show the replicas that a node asks; ``upstream`` is what
    the kubelet is told for ``virtual``'s images in Direct mode."""

    certificate: Certificates
    key: PrivateKey = Field(repr=False)
    upstream: Login | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if not is_pair(self.certificate, self.key):
            raise conflict("key", "is not the key of the first certificate: write the two that were issued together")
        return self

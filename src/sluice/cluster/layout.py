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

    name: NodeName = Field(description="its control-plane node's name, by which status and metrics call it")
    host: HostAddress = Field(description="address of that node, which its certificate has to name")
    port: Port = Field(default=REPLICA_PORT, description="where it serves nodes (`nodes.listen` of its configuration)")

    @property
    def authority(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Remote(Section):
    """A registry outside, as a runtime is to reach it. ``authorities`` vouch for it besides the system's."""

    address: Upstream = Field(
        description="where it is: `https://` unless the address says else, with the path below which it holds the"
        " images"
    )
    authorities: Certificates | None = Field(
        default=None, description="CA certificates that vouch for it beside those of the system"
    )

    @property
    def parsed(self) -> UpstreamAddress:
        """The address in its parts."""
        return parse_upstream(self.address)


class MirroredRegistry(Section):
    """A registry whose images keep their names (``docker.io``).

    ``remote`` is where the source ``upstream`` finds it; without one, that source is left out for it. ``fallback``: the
    runtime may go to the real registry when all sources fail.
    """

    name: RegistryName = Field(description="as images are called there: `docker.io`, `registry.example:5000`")
    remote: Remote | None = Field(
        default=None,
        description="where the source `upstream` finds its images; without it that source is left out for this"
        " registry",
    )
    fallback: bool = Field(
        default=False, description="whether the runtime may go to the real registry when all sources fail"
    )


class BalancerLayout(Section):
    """HAProxy on this node. ``nodes`` check the replicas, which bounds how often each one may."""

    port: Port = Field(default=BALANCER_PORT, description="port on 127.0.0.1 at which runtimes ask it, in plain HTTP")
    metrics_port: Port = Field(
        default=METRICS_PORT, description="port on 127.0.0.1 of `/metrics` (Prometheus) and `/livez`"
    )
    nodes: Annotated[Count, Field(ge=1, le=NODES_MAX)] = Field(
        default=1,
        description="how many nodes of the cluster have a balancer: up to 100 check each replica every 0.5 s, 1,000"
        " every 5 s",
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.port == self.metrics_port:
            raise conflict("metrics_port", "is the balancer's own port: choose another")
        return self


class ReplicaPod(Section):
    """The registry replica that this control-plane node runs as a static pod."""

    image: Image = Field(
        description="an image with `sluice` in its path, which the node can pull before this pod runs, or holds already"
    )
    data: NodePath = Field(
        default="/opt/sluice/registry", description="the registry's data directory, which the pod may write"
    )
    config: NodePath = Field(
        default="/etc/sluice/registry/registry.yaml",
        description="the registry's configuration file, which is yours to write. The pod sees all of the file's"
        " directory, and may not write there",
    )
    memory_mib: Annotated[Count, Field(ge=64, le=1 << 20)] = Field(
        default=512, description="memory in MiB, as request and as limit"
    )
    cpu_millis: Annotated[Count, Field(ge=10, le=1 << 20)] = Field(
        default=100, description="thousandths of a CPU, as request; there is no limit"
    )


class Paths(Section):
    """Where the node's programs look. The defaults are Debian's and kubeadm's."""

    state: NodePath = Field(
        default="/var/lib/sluice/node",
        description="Sluice's memory: what it wrote, what was there before, the last good layout and secrets,"
        " `status.json`; also CA files for the runtimes",
    )
    containerd_config: NodePath = Field(
        default="/etc/containerd/config.toml",
        description="containerd's configuration, which `prepare` extends by a drop-in",
    )
    containerd_hosts: NodePath = Field(
        default="/etc/containerd/certs.d", description="containerd's `config_path`, where each host has a directory"
    )
    containers: NodePath = Field(
        default="/etc/containers", description="CRI-O's and podman's `registries.conf.d` and `certs.d`"
    )
    balancer: NodePath = Field(
        default="/etc/sluice/balancer", description="HAProxy's configuration and the CA of the replicas"
    )
    static_pods: NodePath = Field(default="/etc/kubernetes/manifests", description="the kubelet's `staticPodPath`")
    kubelet_credentials: NodePath = Field(
        default="/etc/kubernetes/sluice-credential-provider.yaml",
        description="the file for the kubelet's `--image-credential-provider-config`",
    )
    kubelet_plugins: NodePath = Field(
        default="/usr/local/bin",
        description="the kubelet's `--image-credential-provider-bin-dir`; Sluice writes nothing there",
    )
    secrets: NodePath = Field(
        default="/etc/sluice/secrets",
        description="the node's certificate and key, and logins at the upstream; for root alone",
    )


class NodeLayout(Section):
    """Everything about one node. ``version`` grows with every change and comes back as the version applied.

    ``virtual`` names every image of the cluster. ``authorities`` vouch for the replicas: two in the middle of a CA's
    rotation. ``upstream`` is where ``virtual``'s images come from in Direct mode.
    """

    version: Annotated[Count, Field(ge=1, le=VERSION_MAX)] = Field(
        description="grows with every change; `status` says which one is applied"
    )
    node: NodeName = Field(description="this node's name, for people")
    mode: Mode = Field(
        description="what `sources` amount to, for people; `unmanaged`: everything is as it was before Sluice, and"
        " `sources` is empty"
    )
    virtual: VirtualAddress = Field(
        default="registry.sluice.internal:5001",
        description="what every image of the cluster is called by, whatever the mode; need not resolve. Every"
        " replica's certificate has to name its host",
    )
    sources: Annotated[tuple[SourceKind, ...], Field(max_length=3)] = Field(
        default=(),
        description="where images come from, asked in this order: `balancer`: HAProxy on this node, before all"
        " `replicas`; `replicas`: these themselves, in their order; `upstream`: the registry itself, that"
        " of each mirrored registry for its images. Needed unless the mode is `unmanaged`",
    )
    registries: Annotated[tuple[MirroredRegistry, ...], Field(max_length=REGISTRIES_MAX)] = Field(
        default=(), description="registries whose images keep their names and come from `sources` too"
    )
    replicas: Annotated[tuple[Replica, ...], Field(max_length=REPLICAS_MAX)] = Field(
        default=(), description="the Sluice registries on control-plane nodes; needed by `balancer` and `replicas`"
    )
    authorities: Certificates | None = Field(
        default=None,
        description="CA certificates that vouch for the replicas, old and new while one replaces the other"
        " (`pki/servers/bundle.crt`); needed with `replicas`",
    )
    upstream: Remote | None = Field(
        default=None, description="where the source `upstream` finds the images of `virtual`"
    )
    balancer: BalancerLayout = Field(default=BalancerLayout(), description="HAProxy's ports, and how often it checks")
    balancer_image: Image | None = Field(
        default=None,
        description="an image with `haproxy` 2.6 or newer in its path; needed by the runner `static-pods` where the"
        " balancer is a source",
    )
    replica_pod: ReplicaPod | None = Field(
        default=None,
        description="the replica to run on this node, with the runner `static-pods`; without it none is run",
    )
    runner: Runner = Field(
        default="agent",
        description="who starts the balancer: `agent`: Sluice, HAProxy being installed; `static-pods`: the kubelet,"
        " which also runs `replica_pod`",
    )
    runtimes: tuple[Runtime, ...] = Field(
        default=("containerd",), description="the node's container runtimes, whose files are written"
    )
    paths: Paths = Field(default=Paths(), description="where the node's programs look")

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

    user: Secret = Field(description="without a colon")
    password: Secret = Field(repr=False, description="its password, or a token")

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        if ":" in self.user:
            raise conflict("user", "has a colon, which no user name can have: write the name without the password")
        return self


class NodeSecrets(PrivateSection):
    """What a node keeps to itself. ``certificate`` and ``key`` show the replicas that a node asks; ``upstream`` is what
    the kubelet is told for ``virtual``'s images in Direct mode."""

    certificate: Certificates = Field(
        description="shows the replicas that a node of the cluster asks; its issuers' may follow"
    )
    key: PrivateKey = Field(repr=False, description="the key of the first certificate, without a password")
    upstream: Login | None = Field(
        default=None, repr=False, description="a login at the layout's `upstream`, where that is a source and wants one"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if not is_pair(self.certificate, self.key):
            raise conflict("key", "is not the key of the first certificate: write the two that were issued together")
        return self

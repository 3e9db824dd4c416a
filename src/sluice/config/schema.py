"""The schema: every setting once, with its type, bounds, default and meaning.

The file, the flags, the environment variables and ``docs/configuration.md`` are made from this model. What one value
may be is in its type; what two values may be together is in the validator of ``RegistryConfig``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic.fields import FieldInfo

from sluice.config.doors import DoorConfig, NodesConfig, OperatorsConfig, PeersConfig
from sluice.config.remote import CacheConfig, Registries, UpstreamConfig
from sluice.config.section import Section, conflict
from sluice.config.values import (
    GIB,
    KIB,
    MIB,
    Address,
    Count,
    FilePath,
    Kind,
    Names,
    Seconds,
    Size,
    WholeSeconds,
    read_realm,
)

VARIABLE_PREFIX = "SLUICE_"
WRITE_BYTES_PER_S = 200_000_000


class TlsConfig(Section):
    """The server's own certificate. Left alone, Sluice makes a CA and a certificate in the data directory."""

    certificate: FilePath | None = Field(
        default=None, description="PEM file with the certificate chain to serve; needs `tls.key`"
    )
    key: FilePath | None = Field(default=None, description="PEM file with the private key of `tls.certificate`")
    names: Names = Field(
        default=(), description="host names and IP addresses to add to the certificate that Sluice makes"
    )


class AccessConfig(Section):
    """Who may do what, and how clients are asked to say who they are."""

    anonymous_pull: bool = Field(
        default=False, description="let clients without credentials pull from every repository"
    )
    challenge: Literal["bearer", "basic"] = Field(
        default="bearer", description="ask for a token (`bearer`) or for name and password on each request (`basic`)"
    )
    service: str = Field(
        default="sluice",
        min_length=1,
        max_length=256,
        pattern=r'^[^\s"\\\x00-\x1f\x7f]+$',
        description="service name in tokens",
    )
    realm: Annotated[str | None, BeforeValidator(read_realm)] = Field(
        default=None,
        description="URL of the token endpoint as clients see it; by default made from the address they called",
    )
    token_ttl_s: WholeSeconds = Field(default=300, ge=60, le=86400, description="how long a token is good for")


class StorageConfig(Section):
    """What is kept on disk."""

    reserve_bytes: Size = Field(
        default=GIB, description="free disk space that writes never touch; reads go on regardless"
    )
    sparse_indexes: bool = Field(
        default=False, description="accept an image index although some of its manifests are not held"
    )
    history_per_tag: Count = Field(default=50, ge=1, le=100_000, description="moves that are remembered for each tag")
    write_bytes_per_s: Size = Field(
        default=WRITE_BYTES_PER_S,
        description="bytes per second that all blobs which a cache fetches are written at, so that neighbours on the"
        " disk (etcd) keep their pace; 0 sets no ceiling",
    )
    pace_pushes: bool = Field(default=False, description="hold pushes of blobs to `storage.write_bytes_per_s` as well")


class GcConfig(Section):
    """When content that nothing names is removed."""

    interval_s: Seconds = Field(default=86400, description="time between garbage collections; 0 turns them off")
    grace_s: Seconds = Field(
        default=86400, description="how long unreferenced content is kept after it was last touched"
    )
    unlink_delay_s: Seconds = Field(
        default=60, ge=60, description="how long a removed file stays on disk for readers that have it"
    )


class LimitsConfig(Section):
    """Bounds on what clients can make the server hold, do or wait for."""

    manifest_bytes: Size = Field(default=4 * MIB, ge=KIB, le=64 * MIB, description="largest manifest accepted")
    uploads: Count = Field(default=1000, ge=1, le=1_000_000, description="upload sessions open at once")
    upload_age_s: Seconds = Field(
        default=86400, ge=60, description="age at which an abandoned upload session is removed"
    )
    header_idle_s: Seconds = Field(
        default=30, ge=1, description="how long a connection may take to send a request's head"
    )
    body_idle_s: Seconds = Field(default=60, ge=1, description="how long an upload's body may stand still")
    response_idle_s: Seconds = Field(
        default=300, ge=1, description="how long a client may leave a response unread before its connection is cut"
    )
    streams_bytes: Size = Field(
        default=8 * MIB, ge=MIB, description="memory that all responses together may hold for clients that read slowly"
    )
    connections: Count = Field(default=4096, ge=1, le=1_000_000, description="connections open at once")
    drain_s: Seconds = Field(
        default=30, description="how long requests in progress may take to finish when the server stops"
    )
    hot_manifests_bytes: Size = Field(default=32 * MIB, description="memory for manifests that are asked for often")
    password_checks: Count = Field(
        default=64, ge=1, le=100_000, description="password checks that may wait; more get 429"
    )


class LogConfig(Section):
    """What is written to standard error."""

    format: Literal["human", "json"] = Field(
        default="human", description="lines for people or one JSON object per line"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least important level written"
    )
    access: bool = Field(default=True, description="write one line for each request")


class RegistryConfig(Section):
    """Everything that can be set. Frozen; unknown keys are refused."""

    mode: Literal["local", "proxy", "direct"] = Field(
        default="local",
        description=(
            "where images come from; `local`: this registry holds them all; `proxy`: from `upstream`, and what was"
            " fetched is kept; `direct`: from `upstream`, and nothing is kept"
        ),
    )
    data: FilePath = Field(default=Path("/opt/sluice/registry"), description="directory that holds everything")
    listen: Address = Field(default="127.0.0.1:5001", description="address of the registry")
    operations_listen: Address = Field(
        default="127.0.0.1:5002", description="address of health, readiness and metrics, in plain HTTP"
    )
    insecure_http: bool = Field(default=False, description="serve the registry without TLS")
    registries: Registries = Field(
        default={},
        description=(
            "further upstreams by the name that images have there (`docker.io`); each a section with the keys of"
            " `upstream`, or `NAME=ADDRESS`"
        ),
    )
    tls: TlsConfig = TlsConfig()
    nodes: NodesConfig = NodesConfig()
    peers: PeersConfig = PeersConfig()
    operators: OperatorsConfig = OperatorsConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    cache: CacheConfig = CacheConfig()
    access: AccessConfig = AccessConfig()
    storage: StorageConfig = StorageConfig()
    gc: GcConfig = GcConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        tls = self.tls
        if (tls.certificate is None) != (tls.key is None):
            missing, given = ("key", "certificate") if tls.key is None else ("certificate", "key")
            raise conflict(f"tls.{given}", f"needs tls.{missing} beside it: set both or neither")
        if tls.certificate is not None and tls.names:
            raise conflict("tls.names", "has no effect on a given tls.certificate: remove one of the two")
        if self.insecure_http and (tls.certificate is not None or tls.names):
            raise conflict("insecure_http", "excludes tls.certificate, tls.key and tls.names: remove one or the other")
        if self.insecure_http and self.doors:
            raise conflict("insecure_http", f"excludes {next(iter(self.doors))}.listen, which needs TLS: remove one")
        if self.mode != "local" and self.upstream.address is None:
            raise conflict("mode", "needs upstream.address, the registry to ask: set it, or use mode local")
        return self._addresses_differ()

    @property
    def doors(self) -> Mapping[str, DoorConfig]:
        """The listeners for clients with certificates that there are, by section."""
        every = {"nodes": self.nodes, "peers": self.peers, "operators": self.operators}
        return {name: door for name, door in every.items() if door.listen is not None}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Every address that is listened on, by key."""
        doors = {f"{name}.listen": door.listen for name, door in self.doors.items() if door.listen is not None}
        return {"listen": self.listen, "operations_listen": self.operations_listen, **doors}

    def _addresses_differ(self) -> Self:
        taken: dict[str, str] = {}
        for key, address in self.addresses.items():
            if taken.setdefault(address, key) != key:
                raise conflict(key, f"is the address of {taken[address]} already: choose another port")
        return self


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its dotted key, what it means and how it is written."""

    key: str
    kind: str
    default: object
    summary: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The long option, ``--limits-manifest-bytes``."""
        return "--" + self._short.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, ``SLUICE_LIMITS_MANIFEST_BYTES``."""
        return VARIABLE_PREFIX + self._short.replace(".", "_").upper()

    @property
    def _short(self) -> str:
        """``upstream`` stands for its address, as in the file."""
        return self.key.removesuffix(".address")


def leaves(model: type[BaseModel] = RegistryConfig, prefix: str = "") -> Iterator[Leaf]:
    """Every setting in the order of the schema."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f"{prefix}{name}.")
        else:
            kind, choices = _describe(field)
            yield Leaf(prefix + name, kind, field.default, field.description or "", choices)


def _describe(field: FieldInfo) -> tuple[str, tuple[str, ...]]:
    if field.annotation is bool:
        return "switch", ()
    parts = [*field.metadata, *_flat(field.annotation)]
    named = [part.name for part in parts if isinstance(part, Kind)]
    choices = tuple(part for part in parts if isinstance(part, str))
    return (named[0], ()) if named else ("choice" if choices else "text", choices)


def _flat(annotation: object) -> Iterator[object]:
    """Yield everything inside an annotation: literals, metadata and the parts of unions."""
    for part in get_args(annotation):
        yield part
        yield from _flat(part)


LEAVES: Mapping[str, Leaf] = {leaf.key: leaf for leaf in leaves()}
"""All settings by key, in the order of the schema."""

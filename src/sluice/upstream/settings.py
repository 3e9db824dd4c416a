"""What an operator can set about one upstream: read once by ``RemoteRegistry``, filled in by ``config`` and ``cli``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sluice.wire.address import UpstreamAddress

KIB, MIB = 1024, 1024**2


@dataclass(frozen=True, slots=True)
class Anonymous:
    """No credentials: what everybody may read."""


@dataclass(frozen=True, slots=True)
class StaticPassword:
    """A name and a password from the configuration."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """A name, and a file whose first line is the password. It is read again when it has changed."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """A ``config.json`` as docker, podman and kubelet have it. It is read again when it has changed."""

    path: Path


@dataclass(frozen=True, slots=True)
class CredentialProgram:
    """A program that speaks the protocol of ``docker-credential-*``; a name for the PATH, or a path."""

    program: str


CredentialSettings = Anonymous | StaticPassword | PasswordFile | DockerConfig | CredentialProgram


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """Limits on one upstream; times in seconds (``_s``), lengths in bytes (``_bytes``).

    ``connect_s``: until the connection stands, TLS included. ``head_s``: until the head of the answer. ``idle_s``:
    between two pieces of a body that is being read. ``pause_s``: how long a body may wait for its reader before it is
    dropped, and how long a request that nobody waits for any more may linger. ``redirects``: followed in a row.
    ``tries``: of one request. ``backoff_s``, ``backoff_max_s``: before the second try, and at most.
    ``connections``: blobs in flight at once, from each address, readers who pause among them;
    ``small_connections``: everything else, which never waits for a blob.
    """

    connect_s: float = 5.0
    head_s: float = 20.0
    idle_s: float = 30.0
    pause_s: float = 300.0
    redirects: int = 5
    tries: int = 3
    backoff_s: float = 0.1
    backoff_max_s: float = 2.0
    error_body_bytes: int = 64 * KIB
    token_body_bytes: int = 256 * KIB
    manifest_bytes: int = 4 * MIB
    listing_bytes: int = 8 * MIB
    connections: int = 1024
    small_connections: int = 64
    allow_private_redirects: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """One upstream. ``name`` is what logs and metrics call it, ``key`` the section of the configuration it is from.

    ``mirrors`` are asked in order when ``address`` cannot be; they get ``mirror_credentials``, so that a password is
    never sent where it was not meant to go. ``ca`` is trusted beside the system's roots. ``proxy`` is an ``http``,
    ``https`` or ``socks5`` URL, which the hosts of ``no_proxy`` go without; proxies from the environment are not used.
    """

    name: str
    address: UpstreamAddress
    mirrors: tuple[UpstreamAddress, ...] = ()
    credentials: CredentialSettings = Anonymous()
    mirror_credentials: CredentialSettings = Anonymous()
    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()
    limits: UpstreamLimits = UpstreamLimits()
    key: str = "upstream"

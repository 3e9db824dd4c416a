"""The sections about other registries: where they are, how we log in there, and what of them is cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sluice.config.section import Section, conflict
from sluice.config.values import (
    Count,
    FilePath,
    Kind,
    Line,
    Names,
    Seconds,
    Size,
    Upstream,
    Upstreams,
    read_proxy,
    read_registry_name,
)

DOCKER_HUB = "docker.io"
DOCKER_HUB_HOST = "registry-1.docker.io"
UserName = Annotated[Line, Field(min_length=1, max_length=256)]


class UpstreamConfig(Section):
    """The registry that Proxy and Direct mode ask, and how. Each of `registries` has the same keys, and a section
    `cache` of its own where its `tag_fresh_s`, `tag_stale_max_s`, `revalidate`, `keep_gone`, `negative_s` or `prefetch`
    are to differ from those of `cache`."""

    address: Upstream | None = Field(
        default=None,
        description="where it is, `[http://|https://]host[:port][/path]`; HTTPS where no scheme is given",
    )
    user: UserName | None = Field(default=None, description="user name; needs `password_file` beside it")
    password_file: FilePath | None = Field(
        default=None, description="file whose first line is the password of `user`; read again when it changes"
    )
    docker_config: FilePath | None = Field(
        default=None, description="`config.json` of docker or podman with the credentials; read again when it changes"
    )
    credential_program: Annotated[Line, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="program that knows the credentials, with the protocol of `docker-credential-*`",
    )
    ca: FilePath | None = Field(
        default=None, description="PEM file with CAs that are trusted beside those of the system"
    )
    client_certificate: FilePath | None = Field(
        default=None, description="PEM file with the certificate to show; needs `client_key` beside it"
    )
    client_key: FilePath | None = Field(
        default=None, description="PEM file with the private key of `client_certificate`"
    )
    proxy: Annotated[str | None, BeforeValidator(read_proxy)] = Field(
        default=None, description="proxy to go through: an `http`, `https` or `socks5` URL"
    )
    no_proxy: Names = Field(default=(), description="hosts and domains that are reached without `proxy`")
    mirrors: Upstreams = Field(
        default=(), description="addresses of registries with the same content, asked in order when it fails"
    )
    mirror_user: UserName | None = Field(
        default=None, description="user name at the mirrors; needs `mirror_password_file`"
    )
    mirror_password_file: FilePath | None = Field(
        default=None, description="file whose first line is the password of `mirror_user`"
    )
    connect_s: Seconds = Field(
        default=5, gt=0, le=300, description="how long a connection to it may take, TLS included"
    )
    head_s: Seconds = Field(default=20, gt=0, le=300, description="how long it may take to begin an answer")
    idle_s: Seconds = Field(default=30, gt=0, le=3600, description="how long a body from it may stand still")
    connections: Count = Field(
        default=1024,
        ge=1,
        le=65_536,
        description=(
            "blobs that come from it at once, readers who pause among them; each takes a file descriptor and up to"
            " 200 KiB. Manifests, tags and tokens have connections of their own"
        ),
    )
    private_redirects: bool = Field(
        default=False, description="follow its redirects from a public address to a private one"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        pairs = (
            ("user", "password_file"),
            ("client_certificate", "client_key"),
            ("mirror_user", "mirror_password_file"),
        )
        for first, second in pairs:
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                given, missing = (first, second) if getattr(self, second) is None else (second, first)
                raise conflict(given, f"needs {missing} beside it: set both or neither")
        ways = [key for key in ("user", "docker_config", "credential_program") if getattr(self, key) is not None]
        if len(ways) > 1:
            raise conflict(ways[1], f"excludes {ways[0]}: choose one way to give credentials")
        return self


class CacheRules(Section):
    """What one of `registries` has otherwise than `cache` says for all; unset is as there."""

    tag_fresh_s: Seconds | None = Field(default=None, le=30 * 86400)
    tag_stale_max_s: Seconds | None = None
    revalidate: Literal["background", "first"] | None = None
    keep_gone: bool | None = None
    negative_s: Seconds | None = Field(default=None, le=3600)
    prefetch: bool | None = None


class NamedUpstreamConfig(UpstreamConfig):
    """One of `registries`."""

    cache: CacheRules = CacheRules()


def read_registries(value: object) -> object:
    """Let ``NAME[=ADDRESS],…`` and a mapping of names to sections or addresses become a mapping to sections.

    Raises ValueError with the remedy.
    """
    if isinstance(value, str):
        parts = [part.strip(" ").partition("=") for part in value.split(",") if part.strip(" ")]
        value = {name.strip(" "): address.strip(" ") or None for name, _, address in parts}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError("is no mapping: write registry names with their settings")  # noqa: TRY004 - pydantic collects
    read: dict[str, object] = {}
    places: dict[str, str] = {}
    for given, section in value.items():
        name = read_registry_name(given)
        if places.setdefault(place_of(name), name) != name or name in read:
            raise ValueError(f"has the registry {name} twice: remove one")
        read[name] = {"address": section} if isinstance(section, str) else ({} if section is None else section)
    return read


def place_of(name: str) -> str:
    """The first part of the repositories that hold a registry's content here: a colon cannot stand there."""
    return name.replace(":", "_")


Registries = Annotated[dict[str, NamedUpstreamConfig], BeforeValidator(read_registries), Kind("registries")]


class CacheConfig(Section):
    """What Proxy mode keeps of its upstreams, and for how long."""

    max_bytes: Size = Field(default=0, description="largest size of the cache; 0: no bound but `storage.reserve_bytes`")
    ttl_s: Seconds = Field(
        default=7 * 86400, description="how long an image is kept after it was last used; 0: for ever"
    )
    tag_fresh_s: Seconds = Field(
        default=60, le=30 * 86400, description="how long a tag is served before its upstream is asked again"
    )
    tag_stale_max_s: Seconds = Field(
        default=7 * 86400, description="age up to which a tag may be served while its upstream is asked"
    )
    revalidate: Literal["background", "first"] = Field(
        default="background",
        description="serve a tag that is not fresh and ask in the `background`, or ask `first`",
    )
    keep_gone: bool = Field(default=True, description="go on serving tags that the upstream has deleted")
    negative_s: Seconds = Field(
        default=10, le=3600, description="how long an upstream's answer that there is none is remembered"
    )
    prefetch: bool = Field(default=False, description="fetch an image's layers as soon as its manifest was asked for")
    fills: Count = Field(default=16, ge=1, le=1024, description="blobs fetched from upstreams at once")
    authorize: Literal["callers", "upstream"] = Field(
        default="callers",
        description=(
            "who may have what was fetched with our credentials: every caller that may pull here (`callers`), or whom"
            " the `upstream` lets in with the same name and password; needs `access.challenge` basic"
        ),
    )

"""The three modes, each a wiring of the same parts. The one place where that is decided.

Local reads and writes the store. Proxy reads upstreams through the store. Direct reads upstreams and keeps nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sluice.cache.answers import CacheCounters
from sluice.cache.fills import Fills
from sluice.cache.policy import CachePolicy
from sluice.cache.space import Reach, Space
from sluice.cache.tenants import Tenants
from sluice.config import DOCKER_HUB, DOCKER_HUB_HOST, RegistryConfig, UpstreamConfig, place_of
from sluice.errors import ConfigInvalid
from sluice.server.entitlement import Entitlement
from sluice.server.fetchers import CacheFetcher, DirectFetcher, Fetcher, LocalFetcher, NamedRemote
from sluice.server.hot import HotManifests
from sluice.server.namespaces import Names, Namespaces
from sluice.server.settings import space_settings
from sluice.server.wiring import Wiring
from sluice.store.local import LocalStore
from sluice.upstream.settings import (
    Anonymous,
    CredentialProgram,
    CredentialSettings,
    DockerConfig,
    PasswordFile,
    UpstreamLimits,
    UpstreamSettings,
)
from sluice.wire.address import UpstreamAddress, parse_upstream

if TYPE_CHECKING:
    from sluice.upstream.registry import RemoteRegistry

DEFAULT = "default"
"""What logs and metrics call the upstream that has no name."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all wirings of a server share: its store, the space of its cache, and the numbers that outlive each of
    them."""

    store: LocalStore
    counters: CacheCounters
    space: Space


def wire(config: RegistryConfig, ground: Ground) -> Wiring:
    """The wiring that the configuration asks for. Raises ConfigInvalid; asks no upstream anything."""
    names = Names(config.registries)
    hot = HotManifests(config.limits.hot_manifests_bytes)
    if config.mode == "local":
        return Wiring("local", LocalFetcher(ground.store), ground.store, hot, names)
    by_upstream = config.cache.authorize == "upstream"
    if by_upstream and config.access.challenge != "basic":
        raise ConfigInvalid(
            "cache.authorize is 'upstream', which needs the names and passwords of callers: set access.challenge to"
            " basic, since tokens of ours say nothing to an upstream"
        )
    from sluice.upstream.registry import RemoteRegistry  # noqa: PLC0415 - its HTTP library takes 7 MiB

    remotes = {name: RemoteRegistry(settings) for name, settings in upstream_settings(config)}
    if by_upstream:
        hot = HotManifests(0)  # each request is let in, or not
    make = _direct if config.mode == "direct" else _proxy
    wiring = make(config, ground, (hot, names, remotes))
    if by_upstream:
        _entitle(wiring, Tenants(cache_policy(config), time.time), remotes)
    return wiring


def _entitle(wiring: Wiring, tenants: Tenants, remotes: dict[str, RemoteRegistry]) -> None:
    places = {place_of(name): remote for name, remote in remotes.items() if name != DEFAULT}
    entitlement = wiring.entitlement = Entitlement(remotes[DEFAULT], places, tenants)
    end = wiring.end

    async def end_both() -> None:
        await entitlement.close()
        await end()

    wiring.end = end_both


_Parts: TypeAlias = "tuple[HotManifests, Names, dict[str, RemoteRegistry]]"


def _direct(config: RegistryConfig, ground: Ground, parts: _Parts) -> Wiring:
    hot, names, remotes = parts
    policy = cache_policy(config)
    fetcher = _spread(remotes, lambda remote: DirectFetcher(remote, policy, ground.counters))
    wiring = Wiring("direct", fetcher, None, hot, names, remotes)

    async def end() -> None:
        for remote in remotes.values():
            await remote.close()

    wiring.end = end
    return wiring


def _proxy(config: RegistryConfig, ground: Ground, parts: _Parts) -> Wiring:
    hot, names, remotes = parts
    upstream_of = _upstream_of(remotes)
    words = {name: str(remote.settings.address) for name, remote in remotes.items()}
    store = ground.store.seen_by(lambda repository: words[upstream_of(repository)])
    fills = Fills(store, cache_policy(config), ground.counters, time.time, ground.space)
    caches: list[CacheFetcher] = []

    def cache(remote: NamedRemote) -> Fetcher:
        rules = cache_policy(config, remote.place)
        caches.append(CacheFetcher(store, remote, fills, policy=rules))
        return caches[-1]

    wiring = Wiring("proxy", _spread(remotes, cache), store, hot, names, remotes)

    async def end() -> None:
        for one in caches:
            await one.close()
        await fills.close()
        for remote in remotes.values():
            await remote.close()

    wiring.finish, wiring.end = fills.finish, end
    hot.on_use = ground.store.use
    ground.space.use(space_settings(config), _reach(remotes, upstream_of))
    return wiring


def _reach(remotes: dict[str, RemoteRegistry], upstream_of: Callable[[str], str]) -> Reach:
    async def ask(names: Collection[str]) -> Collection[str]:
        silent = await asyncio.gather(*(remotes[name].is_silent() for name in names))
        return [name for name, is_silent in zip(names, silent, strict=True) if is_silent]

    return Reach(upstream_of, lambda: [name for name, remote in remotes.items() if remote.is_broken], ask)


def _upstream_of(remotes: dict[str, RemoteRegistry]) -> Callable[[str], str]:
    """Where each repository's content comes from, by the places of the registries."""
    places = {place_of(name): name for name in remotes if name != DEFAULT}

    def upstream_of(repository: str) -> str:
        place, slash, _ = repository.partition("/")
        return places.get(place, DEFAULT) if slash else DEFAULT

    return upstream_of


def _spread(remotes: dict[str, RemoteRegistry], fetcher: Callable[[NamedRemote], Fetcher]) -> Fetcher:
    default = fetcher(NamedRemote(remotes[DEFAULT], ""))
    places = {
        place_of(name): fetcher(NamedRemote(remote, place_of(name)))
        for name, remote in remotes.items()
        if name != DEFAULT
    }
    return Namespaces(default, places) if places else default


def upstream_keys(config: RegistryConfig) -> Iterator[tuple[str, UpstreamAddress]]:
    """Every address that may be asked, with the key that it comes from; raises ConfigInvalid."""
    for name, settings in upstream_settings(config):
        key = "upstream" if name == DEFAULT else f"registries.{name}"
        yield f"{key}.address", settings.address
        for mirror in settings.mirrors:
            yield f"{key}.mirrors", mirror


def upstream_files(config: RegistryConfig) -> list[Path]:
    """What the clients of the mode's upstreams are made of, beside the configuration."""
    sections = [] if config.mode == "local" else [config.upstream, *config.registries.values()]
    named = [path for one in sections for path in (one.ca, one.client_certificate, one.client_key)]
    return [path for path in named if path is not None]


def upstream_settings(config: RegistryConfig) -> Iterator[tuple[str, UpstreamSettings]]:
    """The default upstream and the registries by name; raises ConfigInvalid."""
    yield DEFAULT, _settings(DEFAULT, "upstream", config.upstream)
    for name, section in config.registries.items():
        yield name, _settings(name, f"registries.{name}", section)


def _settings(name: str, key: str, section: UpstreamConfig) -> UpstreamSettings:
    address = section.address or (DOCKER_HUB_HOST if name == DOCKER_HUB else name)
    parsed = parse_upstream(address, f"{key}.address")
    if parsed.host == DOCKER_HUB:
        raise ConfigInvalid(
            f"{key}.address is {address}, a name under which no registry answers: write {DOCKER_HUB_HOST} (official"
            " images are below library/ there)"
        )
    return UpstreamSettings(
        name=name,
        key=key,
        address=parsed,
        mirrors=tuple(parse_upstream(mirror, f"{key}.mirrors") for mirror in section.mirrors),
        credentials=_credentials(section),
        mirror_credentials=(
            Anonymous()
            if section.mirror_user is None or section.mirror_password_file is None
            else PasswordFile(section.mirror_user, section.mirror_password_file)
        ),
        ca=section.ca,
        client_certificate=section.client_certificate,
        client_key=section.client_key,
        proxy=section.proxy,
        no_proxy=section.no_proxy,
        limits=UpstreamLimits(
            connect_s=section.connect_s,
            head_s=section.head_s,
            idle_s=section.idle_s,
            connections=section.connections,
            allow_private_redirects=section.private_redirects,
        ),
    )


def _credentials(section: UpstreamConfig) -> CredentialSettings:
    if section.user is not None and section.password_file is not None:
        return PasswordFile(section.user, section.password_file)
    if section.docker_config is not None:
        return DockerConfig(section.docker_config)
    if section.credential_program is not None:
        return CredentialProgram(section.credential_program)
    return Anonymous()


def cache_policy(config: RegistryConfig, place: str = "") -> CachePolicy:
    """The part of the configuration that a cache decides by; for the registry at ``place``, with its own rules."""
    own = next((one.cache for name, one in config.registries.items() if place_of(name) == place), None)
    rules = {} if own is None else own.model_dump(exclude_none=True)
    cache = config.cache.model_copy(update=rules)
    return CachePolicy(
        tag_fresh_s=cache.tag_fresh_s,
        tag_stale_max_s=cache.tag_stale_max_s,
        revalidate=cache.revalidate,
        keep_gone=cache.keep_gone,
        negative_s=cache.negative_s,
        fills_max=cache.fills,
        prefetch=cache.prefetch,
    )

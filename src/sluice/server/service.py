"""A whole server, put together from a configuration: store, access, listeners and what runs beside them.

``start`` brings everything up in an order in which nothing answers before it can; ``stop`` takes it down so that what
was acknowledged is on disk and what is being transferred may finish.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from sluice.cache.answers import CacheCounters
from sluice.cache.space import SWEEP_S, Space
from sluice.config import ConfigSource, RegistryConfig, is_loopback, split_address
from sluice.errors import ConfigInvalid, SluiceError
from sluice.server.access import Access, AccessSettings
from sluice.server.app import Application
from sluice.server.certificates import Certificates
from sluice.server.doors import WithHealth, certified
from sluice.server.health import Operations, Readiness
from sluice.server.listen import Endpoint, Listener, Tls
from sluice.server.measures import measure_space, measure_wiring
from sluice.server.modes import Ground, upstream_files, wire
from sluice.server.operations_cache import CacheDesk
from sluice.server.ourselves import refuse_ourselves
from sluice.server.passwords import PasswordCheck
from sluice.server.registry import Limits, Registry
from sluice.server.reload import CONFIG_CHECK_S, SETTLE_S, Reload, Signature
from sluice.server.settings import space_settings, store_settings
from sluice.server.sever import sever, sweep
from sluice.server.tokens import Tokens
from sluice.server.users import Users
from sluice.server.wiring import Wiring
from sluice.store.gc import GcSchedule
from sluice.store.local import LocalStore, Totals
from sluice.telemetry import AccessLog, Metrics

log = logging.getLogger("sluice.server")

FILES_PER_CONNECTION = 2
FILES_BESIDE = 512
HEALTH_CHECK_S = 1.0
HEALTH_TIMEOUT_S = 5.0
CERTIFICATE_CHECK_S = 60.0
OPERATIONS_CONNECTIONS = 256


class Service:
    """One running server. ``had_upstreams``: whether it has ever had a client for one."""

    def __init__(self, config: RegistryConfig, source: ConfigSource) -> None:
        self.config = config
        self.reload = Reload(source, config, self._rewire, upstream_files)
        self.metrics = Metrics()
        self.access_log = AccessLog(json_lines=config.log.format == "json", enabled=config.log.access)
        self.certificates = Certificates(config)
        self.readiness = Readiness("starting", "starting")
        self.store: LocalStore
        self.users: Users
        self.schedule: GcSchedule
        self.space: Space
        self.counters = CacheCounters()
        self.registry: Registry | None = None
        self._wirings: list[Wiring] = []
        self.had_upstreams = False
        self._totals = Totals(0, 0, 0)
        self._access: Access | None = None
        self._tokens: Tokens
        self._listeners: dict[str | None, Listener] = {}
        self._renewing = asyncio.Lock()
        self._certified: Sequence[Signature] = ()
        self._authorities: Mapping[str, float] = {}
        self._applications: list[Application] = []
        self._operations: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """Open the store, then the doors. Raises ConfigInvalid, DataDirectoryBusy or DataDirectoryTooNew."""
        allow_files(self.config.limits.connections)
        await asyncio.to_thread(refuse_ourselves, self.config)
        self.store = await asyncio.to_thread(LocalStore.open, self.config.data, store_settings(self.config))
        try:
            await self._start()
        except BaseException:
            await self._abandon()
            raise

    async def _start(self) -> None:
        await self.store.start()
        self.users = Users(self.config.data)
        self.space = Space(self.store, space_settings(self.config))
        self._certified = await asyncio.to_thread(self.certificates.signature)
        problems = await asyncio.to_thread(self.certificates.refresh)
        if problems:
            raise problems[0]
        self._authorities = self.certificates.authorities()
        registry = self.registry = self._registry()
        self.store.events.on_change(registry.changed)
        self.schedule = GcSchedule(self.store, self.config.gc.interval_s, lambda: registry.wiring.mode == "local")
        self._measure(registry)
        self.access_log.start()
        await self._listen(registry)
        await self._check_health()  # ready only now: /readyz must not say so before the registry can be reached
        self._run_beside(self._every(HEALTH_CHECK_S, self._check_health))
        self._run_beside(self._every(CONFIG_CHECK_S, self.reload.look))
        self._run_beside(self._every(CONFIG_CHECK_S, self._look_at_certificates))
        self._run_beside(self._every(CERTIFICATE_CHECK_S, self.renew_certificates))
        self._run_beside(self._every(CERTIFICATE_CHECK_S, self._renew_token_key))
        self._run_beside(self._every(self.config.limits.header_idle_s / 2, self._sweep_connections))
        self._run_beside(self._every(SWEEP_S, self._sweep_cache))
        self._run_beside(self.schedule.run())

    def _registry(self) -> Registry:
        config = self.config
        tokens = self._tokens = Tokens(config.data, self.users, config.access.service)
        checks = PasswordCheck(self.users, config.limits.password_checks)
        settings = AccessSettings(
            open=is_loopback(config.listen),
            anonymous_pull=config.access.anonymous_pull,
            challenge=config.access.challenge,
            service=config.access.service,
            realm=config.access.realm,
            token_ttl_s=config.access.token_ttl_s,
        )
        limits = Limits(
            manifest_bytes=config.limits.manifest_bytes,
            body_idle_s=config.limits.body_idle_s,
            response_idle_s=config.limits.response_idle_s,
            streams_bytes=config.limits.streams_bytes,
        )
        self._access = Access(self.users, checks, tokens, settings)
        wiring = wire(config, Ground(self.store, self.counters, self.space))
        self._wirings.append(wiring)
        self.had_upstreams = bool(wiring.upstreams)
        return Registry(wiring, self._access, self.metrics, self.access_log, limits)

    async def _listen(self, registry: Registry) -> None:
        config = self.config
        operations = Operations(self.metrics, lambda: self.readiness)
        self._operations = Listener(
            self._endpoint("operations", config.operations_listen, None, OPERATIONS_CONNECTIONS), operations
        )
        await self._operations.start()
        await self._open(None, config.listen, Application(registry, sever), operations)
        for name, door in config.doors.items():
            assert door.listen is not None
            await self._open(name, door.listen, Application(registry, sever, certified(name)), operations)

    async def _open(self, door: str | None, address: str, application: Application, health: Operations) -> None:
        self._applications.append(application)
        tls, connections = self.certificates.tls(door), self.config.limits.connections
        endpoint = self._endpoint(door or "registry", address, tls, connections)
        self._listeners[door] = Listener(endpoint, WithHealth(application, health))
        await self._listeners[door].start()

    def _endpoint(self, name: str, address: str, tls: Tls | None, connections: int) -> Endpoint:
        host, port = split_address(address)
        return Endpoint(name, host, port, tls, connections, self.config.limits.header_idle_s)

    def _measure(self, registry: Registry) -> None:
        store, gauge = self.store, self.metrics.gauge
        measure_wiring(self.metrics, registry, self.counters)
        measure_space(self.metrics, self.space)
        gauge("config_valid", "0 where the configuration file is not valid now", lambda: self.reload.valid)
        gauge("store_contents", "Blobs and manifests held", lambda: self._totals.contents)
        gauge("store_bytes", "Bytes held", lambda: self._totals.bytes)
        gauge("store_free_bytes", "Free bytes on the data directory's disk", lambda: free_bytes(self.config.data))
        gauge("uploads_open", "Upload sessions open", lambda: store.uploads.count)
        gauge("hot_manifests_bytes", "Memory held by hot manifests", lambda: registry.wiring.hot.bytes)
        gauge(
            "access_log_dropped",
            "Access log lines dropped because writing them fell behind",
            lambda: self.access_log.dropped,
        )
        gauge(
            "gc_last_success_seconds",
            "When GC last finished, seconds since the epoch",
            lambda: self.schedule.last_success,
        )
        gauge("gc_removed_bytes", "Bytes unlinked by GC since start", lambda: self.schedule.unlinked_bytes)
        gauge("gc_removed_files", "Files unlinked by GC since start", lambda: self.schedule.unlinked)
        gauge("certificate_not_after_seconds", "When the certificate ends", self.certificates.expiry_s)
        self.metrics.family(
            "door_authority_not_after_seconds",
            "When a CA ends whose certificates a door takes now; by door and SHA-256 of the CA's certificate",
            "authority",
            lambda: self._authorities,
        )

    async def _rewire(self, config: RegistryConfig) -> None:
        """Put another mode, or the same one with other settings, in the place of the current one."""
        assert self.registry is not None
        await asyncio.to_thread(refuse_ourselves, config)
        wiring = wire(config, Ground(self.store, self.counters, self.space))
        self._wirings.append(wiring)
        self.had_upstreams = self.had_upstreams or bool(wiring.upstreams)
        self.config = config
        self.background(self._retire(self.registry.rewire(wiring)))
        log.info("new requests are served in %s mode", config.mode)

    async def _retire(self, wiring: Wiring) -> None:
        await wiring.retire()
        self._wirings.remove(wiring)
        log.info("the last request and fetch of the %s mode before it have ended", wiring.mode)

    async def renew_certificates(self) -> None:
        """Serve with new certificates and CAs where there are some; a bad one is reported and the old one kept."""
        async with self._renewing:
            self._certified = await asyncio.to_thread(self.certificates.signature)
            for problem in await asyncio.to_thread(self.certificates.refresh):
                log.error("the certificate stays as it is: %s", problem)
            wanted = {door: self.certificates.tls(door) for door in self._listeners}
            await asyncio.gather(
                *(
                    self._listeners[door].renew(tls)
                    for door, tls in wanted.items()
                    if tls is not None and tls != self._listeners[door].endpoint.tls
                )
            )
            self._authorities = self.certificates.authorities()  # not before all listeners have them

    async def _look_at_certificates(self) -> None:
        """Read the given files again where one has changed; what is wrong with it now may be right in a moment."""
        if await asyncio.to_thread(self.certificates.signature) != self._certified:
            await asyncio.sleep(SETTLE_S)
            await self.renew_certificates()

    async def _renew_token_key(self) -> None:
        if await asyncio.to_thread(self._tokens.renew, self.config.access.token_ttl_s):
            log.info("tokens are signed with a new key; those in use live to their end")

    async def _check_health(self) -> None:
        reads = "stopping" if self._stopping else ""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                self._totals = await self.store.totals()
                await self.space.refresh()
        except (SluiceError, TimeoutError) as error:
            reads = reads or f"the index does not answer: {error}"
        writes = "" if self.store.writable() else "no room for writes: the disk is at storage.reserve_bytes"
        self.readiness = Readiness(reads, writes)

    async def _sweep_connections(self) -> None:
        ports = {listener.endpoint.port for listener in self._listeners.values()}
        busy = {peer for application in self._applications for peer in application.busy}
        cut = await asyncio.to_thread(sweep, ports, busy, self.config.limits.header_idle_s)
        if cut:
            self.metrics.count("connections_swept", "Connections closed because nothing was sent on them", cut)

    def desk(self) -> CacheDesk:
        """What the commands about the cache work on; after ``start``."""
        registry = self.registry
        assert registry is not None
        return CacheDesk(self.store, self.space, lambda: registry.wiring.names, self.counters, lambda: registry.wiring)

    async def _sweep_cache(self) -> None:
        if self.registry is not None and self.registry.wiring.mode == "proxy":
            await self.space.sweep()

    async def _every(self, seconds: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await action()
            except (SluiceError, OSError) as error:
                log.error("%s failed: %s", action.__name__.strip("_"), error)
            except Exception:  # a bug of ours must not end the watching
                log.exception("%s failed", action.__name__.strip("_"))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the serving; it ends with the server at the latest."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._run_beside(work)

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def stop(self) -> bool:
        """Drain and close. False where transfers were still running when ``limits.drain_s`` had passed."""
        self._stopping = True
        self.readiness = Readiness("stopping", "stopping")
        drained = True
        try:
            async with asyncio.timeout(self.config.limits.drain_s):
                await asyncio.gather(*(listener.stop() for listener in self._listeners.values()))
        except TimeoutError:
            drained = False
            log.warning(
                "transfers were still running after limits.drain_s = %g s; they are cut", self.config.limits.drain_s
            )
        await self._abandon()
        return drained

    async def _abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.access_log.stop()
        for wiring in self._wirings:
            await wiring.close()
        if self._access is not None:
            self._access.close()
        await self.store.close()


def free_bytes(data: Path) -> float:
    """Bytes that an unprivileged writer could still use on the data directory's disk (statvfs(3)); NaN without it."""
    try:
        found = os.statvfs(data)
    except OSError:
        return math.nan
    return found.f_bavail * found.f_frsize


def allow_files(connections: int) -> None:
    """Raise the limit on open files to what the connections may need; raises ConfigInvalid where that is impossible."""
    needed = connections * FILES_PER_CONNECTION + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigInvalid(
            f"limits.connections = {connections} needs {needed} open files, the system allows {hard}: raise the limit"
            " (ulimit -n, LimitNOFILE=) or lower limits.connections"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

"""``sluice serve``: a Service from start to signal to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable

from sluice.config import ConfigSource, is_loopback
from sluice.server.admin import AdminServer
from sluice.server.modes import upstream_keys
from sluice.server.operations import handlers
from sluice.server.service import Service
from sluice.telemetry import configure_logging

log = logging.getLogger("sluice.server")

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(source: ConfigSource, ready: Callable[[Service], None] | None = None) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP re-reads configuration, certificates and users. Returns the exit code, 0.

    ``ready`` is called once everything answers. Raises ConfigInvalid, DataDirectoryBusy or DataDirectoryTooNew.
    """
    config = source.load()
    configure_logging(json_lines=config.log.format == "json", level=config.log.level)
    service = Service(config, source)
    stop = asyncio.Event()
    await service.start()
    known = handlers(service.store, service.users, service.schedule, service.desk())
    admin = AdminServer(config.data / "admin.sock", known)
    try:
        await admin.start()
        _on_signals(END_SIGNALS, stop.set)
        _on_signals((signal.SIGHUP,), lambda: _reload(service))
        _introduce(service)
        gc.freeze()  # what is there by now stays: no collection has to walk over it
        if ready is not None:
            ready(service)
        await stop.wait()
        log.info("stopping: no new requests, %g s for those in progress", config.limits.drain_s)
    finally:
        for number in (*END_SIGNALS, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the drain is bounded; a second signal must not turn it into a crash
        await admin.stop()
        drained = await service.stop()
    log.info("stopped")
    if not drained or service.had_upstreams:
        _end_now()
    return 0


def _on_signals(numbers: Iterable[signal.Signals], action: Callable[[], None]) -> None:
    """Run ``action`` in the event loop for each of these signals.

    Not by ``loop.add_signal_handler``: taking such a handler away restores the default action, and a signal that comes
    before the next one is in place, or after the loop has closed, would kill the process.
    """
    loop = asyncio.get_running_loop()
    for number in numbers:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(action))


def _reload(service: Service) -> None:
    log.info("reloading configuration, certificates and users")
    service.users.reload()
    service.background(service.reload.read())
    service.background(service.renew_certificates())


def _end_now() -> None:
    """End the process without the interpreter's own end. Everything acknowledged is on disk by now.

    Connections that outlive the deadline belong to the server library's threads, and nothing else ends them. The
    threads of the upstreams' HTTP library may still be letting go of the interpreter when it ends, which would abort
    the process (seen in about half of all runs that end right after a request).
    """
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(0)


def _introduce(service: Service) -> None:
    config = service.config
    scheme = "http" if config.insecure_http else "https"
    log.info("serving %s://%s, data in %s", scheme, config.listen, config.data)
    if config.mode != "local":
        for key, address in upstream_keys(config):
            log.info("%s mode, %s is %s", config.mode, key, address)
    if service.certificates.ca is not None:
        log.info("clients trust it with the CA in %s", service.certificates.ca)
    if config.insecure_http and not is_loopback(config.listen):
        log.warning("INSECURE: plain HTTP on %s sends passwords and images unprotected (insecure_http)", config.listen)
    if not service.users.list():
        what = ("pull and push", "pull or push") if config.mode == "local" else ("pull", "pull")
        if is_loopback(config.listen):
            log.warning("no users are configured: anybody on this machine may %s (sluice user add)", what[0])
        elif not config.access.anonymous_pull:
            log.warning("no users are configured: nobody may %s (sluice user add)", what[1])

"""``make run``: the whole story on one machine, told by real programs.

Starts the registry, pushes an image with skopeo, pulls it with an unpatched containerd under a constant name, runs it,
then leaves the registry running for whoever wants to try more. The data outlives the demo; nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sluice.cli.demo_children import Child, run_step
from sluice.cli.demo_containerd import private_containerd
from sluice.cli.demo_image import build_image, machine_architecture
from sluice.errors import Unavailable
from sluice.server.admin import SOCKET_NAME, call, reach

PORT, OPERATIONS_PORT = 5001, 5002
REPOSITORY, TAG = "demo/hello", "1"
NAME_IN_CLUSTER = "registry.sluice.internal:5001"
READY_S = 30.0
"""How long the registry may take to become ready, in seconds."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where everything of one run is."""

    home: Path
    address: str
    operations: str

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def certificates(self) -> Path:
        """A directory with the CA and nothing else, as skopeo and containerd want it."""
        return self.home / "certs"

    @property
    def ca(self) -> Path:
        return self.certificates / "ca.crt"

    @property
    def image(self) -> str:
        return f"docker://{self.address}/{REPOSITORY}:{TAG}"

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"


@click.command(hidden=True)
@click.option("--once", is_flag=True, help="End after the story instead of waiting for Ctrl-C.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=".sluice", show_default=True, help="Where data stays."
)
def demo(once: bool, directory: Path) -> int:
    """Start a registry, push an image, pull and run it with containerd."""
    _stop_on_signals()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_alone(directory)
    stage = _Stage(directory, _free_address(PORT, "registry"), _free_address(OPERATIONS_PORT, "operations"))
    with _registry(stage) as server:
        told = _tell_story(stage)
        _summarise(stage, told)
        if not once:
            _wait(server)
    _say("ended; the data stays")
    return 0


def _stop_on_signals() -> None:
    """Make SIGTERM end the demo like Ctrl-C, and Ctrl-C work even where a shell started us in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _require_alone(home: Path) -> None:
    running = reach(home / "data" / SOCKET_NAME)
    if running is not None:
        running.close()
        raise Unavailable(f"a registry runs on {home}/data already: end that one first, or choose another --directory")


def _free_address(preferred: int, what: str) -> str:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            chosen = probe.getsockname()[1]
            if chosen != preferred:
                _say(f"port {preferred} is in use by another program: {what} goes to port {chosen}")
            return f"127.0.0.1:{chosen}"
    raise Unavailable("no port is free on 127.0.0.1: end some programs")


@contextlib.contextmanager
def _registry(stage: _Stage) -> Iterator[Child]:
    """Run ``sluice serve`` until the block ends; then drain and end it."""
    command = [sys.executable, "-m", "sluice", "serve", "--data", str(stage.data), "--listen", stage.address]
    command += ["--operations-listen", stage.operations]
    # The demo's registry is as the demo says, whatever else the user has configured.
    others = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    with Child("sluice serve", command, stage.log("sluice"), others) as server:
        started = time.monotonic()
        try:
            _await_ready(stage, server)
            _say(f"registry ready after {time.monotonic() - started:.2f} s on {stage.url}")
            stage.certificates.mkdir(exist_ok=True)
            shutil.copyfile(stage.data / "tls" / "ca.crt", stage.ca)
            yield server
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            _say("stopping the registry: transfers in progress may finish")


def _await_ready(stage: _Stage, server: Child) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        server.require_running()
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{stage.operations}/readyz", timeout=2).close()
            return
        time.sleep(0.05)
    raise Unavailable(f"the registry was not ready within {READY_S:.0f} s: see {stage.log('sluice')}")


def _tell_story(stage: _Stage) -> bool:
    """Push, pull and run; False where there are users, and so a password that the demo does not know."""
    found = _ask(stage, "tags", {"repository": None, "after": None})["tags"]
    if found:
        names = ", ".join(f"{tag['repository']}:{tag['tag']}" for tag in found[:10])
        _say(f"found the data of an earlier run: {names}{' and more' if len(found) > 10 else ''}")
    if _ask(stage, "user list", {"after": None})["users"]:
        _say("there are users, so nobody pushes or pulls without a password: the demo leaves that to you")
        return False
    _push(stage)
    _pull_and_run(stage)
    return True


def _push(stage: _Stage) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Unavailable("busybox is not installed: run make setup, or install the Debian package busybox-static")
    layout = stage.home / "image"
    shutil.rmtree(layout, ignore_errors=True)
    digest = build_image(layout, Path(busybox), TAG)
    _say(f"built an image for linux/{machine_architecture()} and friends: {digest}")
    copy = ["skopeo", "--insecure-policy", "copy", "--all", "--dest-cert-dir", str(stage.certificates)]
    with _timed(f"pushed it with skopeo to {stage.address}/{REPOSITORY}:{TAG}"):
        run_step([*copy, f"oci:{layout}:{TAG}", stage.image])


def _pull_and_run(stage: _Stage) -> None:
    if os.geteuid() != 0:
        _say("not root, so containerd cannot run: skipping the pull (repeat with sudo to see it)")
        return
    image = f"{NAME_IN_CLUSTER}/{REPOSITORY}:{TAG}"
    with private_containerd(stage.log("containerd")) as containerd:
        containerd.redirect(NAME_IN_CLUSTER, stage.url, stage.ca)
        with _timed(f"pulled it with an unpatched containerd as {image}"):
            containerd.pull(image)
        with _timed("ran it"):
            printed = containerd.run(image)
        for line in printed.splitlines():
            _say(f"  | {line}")


def _ask(stage: _Stage, command: str, arguments: dict[str, object]) -> Any:
    return call(stage.data / SOCKET_NAME, command, arguments)


@contextlib.contextmanager
def _timed(done: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    _say(f"{done}: {time.monotonic() - started:.2f} s")


def _summarise(stage: _Stage, is_open: bool) -> None:
    program = Path(sys.executable).with_name("sluice")
    sluice = shlex.quote(os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program))
    certificates = f"--src-cert-dir {stage.certificates} --dest-cert-dir {stage.certificates}"
    commands = [
        f"skopeo inspect --cert-dir {stage.certificates} {stage.image}",
        f"skopeo --insecure-policy copy {certificates} {stage.image} docker://{stage.address}/mine/hello:2",
        f"{sluice} tags --data {stage.data}",
    ]
    if not is_open:
        commands[:0] = [f"skopeo login --cert-dir {stage.certificates} {stage.address}"]
    listed = "\n  ".join(commands)
    click.echo(f"""
Sluice is running.
  registry  {stage.url}
  CA        {stage.ca}
  data      {stage.data} (kept; rm -r {stage.home} forgets it)
  log       {stage.log("sluice")}
  health    http://{stage.operations}/readyz, metrics beside it at /metrics

Try in another terminal:
  {listed}
""")


def _wait(server: Child) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        _say("Ctrl-C ends it")
        while True:
            server.require_running()
            time.sleep(0.5)


def _say(text: str) -> None:
    click.echo(f"demo: {text}", err=True)

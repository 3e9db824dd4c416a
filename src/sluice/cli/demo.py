"""``make run``: the whole story on one machine, told by real programs.

Starts a registry and a caching Sluice before it, pulls through the cache with an unpatched containerd, cuts the
upstream and pulls again (``demo_story``); then leaves both running for whoever wants to try more. The data outlives the
demo; nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from sluice.cli.demo_registry import Place, RunningRegistry
from sluice.cli.demo_story import REPOSITORY, TAG, TAG_FRESH_S, Story, say
from sluice.errors import Unavailable
from sluice.server.admin import SOCKET_NAME, reach

PORT, OPERATIONS_PORT = 5001, 5002
UPSTREAM_PORT, UPSTREAM_OPERATIONS_PORT = 5003, 5004


@click.command(hidden=True)
@click.option("--once", is_flag=True, help="End after the story instead of waiting for Ctrl-C.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=".sluice", show_default=True, help="Where data stays."
)
def demo(once: bool, directory: Path) -> int:
    """Pull through a cache with containerd, cut its upstream, pull again."""
    _stop_on_signals()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    places = [
        Place("upstream", directory, directory / "upstream", *_addresses(UPSTREAM_PORT, UPSTREAM_OPERATIONS_PORT)),
        Place("sluice", directory, directory / "data", *_addresses(PORT, OPERATIONS_PORT)),
    ]
    for place in places:
        _require_alone(place)
    with _registries(*places) as (upstream, cache):
        story = Story(directory, cache, upstream)
        is_open = _is_open(story)
        if is_open:
            story.tell()
        _summarise(story, is_open)
        if not once:
            _wait(upstream, cache)
    say("ended; the data stays")
    return 0


def _stop_on_signals() -> None:
    """Make SIGTERM end the demo like Ctrl-C, and Ctrl-C work even where a shell started us in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def _require_alone(place: Place) -> None:
    running = reach(place.data / SOCKET_NAME)
    if running is not None:
        running.close()
        raise Unavailable(f"a registry runs on {place.data} already: end that one first, or choose another --directory")


def _addresses(port: int, operations_port: int) -> tuple[str, str]:
    return _free_address(port, "registry"), _free_address(operations_port, "operations")


def _free_address(preferred: int, what: str) -> str:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            chosen = probe.getsockname()[1]
            if chosen != preferred:
                say(f"port {preferred} is in use by another program: {what} goes to port {chosen}")
            return f"127.0.0.1:{chosen}"
    raise Unavailable("no port is free on 127.0.0.1: end some programs")


@contextlib.contextmanager
def _registries(upstream: Place, cache: Place) -> Iterator[tuple[RunningRegistry, RunningRegistry]]:
    """Run both until the block ends; then drain and end them, the cache first."""
    started = time.monotonic()
    with RunningRegistry(upstream, "--mode", "local") as behind:
        say(f"upstream registry ready after {time.monotonic() - started:.2f} s on {upstream.url}")
        started = time.monotonic()
        flags = ("--mode", "proxy", "--upstream", upstream.url, "--upstream-ca", str(upstream.ca))
        asks = ("--cache-tag-fresh-s", f"{TAG_FRESH_S:g}", "--cache-revalidate", "first")
        with RunningRegistry(cache, *flags, *asks) as before:
            say(f"caching Sluice ready after {time.monotonic() - started:.2f} s on {cache.url}")
            try:
                yield behind, before
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                say("stopping both registries: transfers in progress may finish")


def _is_open(story: Story) -> bool:
    """Say what an earlier run left; False where there are users, and so a password that the demo does not know."""
    found = story.cache.ask("tags", {"repository": None, "after": None})["tags"]
    if found:
        names = ", ".join(f"{tag['repository']}:{tag['tag']}" for tag in found[:10])
        say(f"found the data of an earlier run: {names}{' and more' if len(found) > 10 else ''}")
    for registry in (story.cache, story.upstream):
        if registry.ask("user list", {"after": None})["users"]:
            say("there are users, so nobody pushes or pulls without a password: the demo leaves that to you")
            return False
    return True


def _summarise(story: Story, is_open: bool) -> None:
    program = Path(sys.executable).with_name("sluice")
    sluice = shlex.quote(os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program))
    cache, upstream = story.cache.place, story.upstream.place
    image = cache.image(f"{REPOSITORY}:{TAG}")
    commands = [
        f"skopeo inspect --cert-dir {cache.certificates} {image}",
        f"curl -sSI --cacert {cache.ca} {cache.url}/v2/{REPOSITORY}/manifests/{TAG}",
        f"{sluice} tags --data {cache.data}",
    ]
    if not is_open:
        commands[:0] = [f"skopeo login --cert-dir {cache.certificates} {cache.address}"]
    width = max((len(what) for what, _ in story.told), default=0)
    happened = "\n".join(f"  {what:<{width}}  {outcome}" for what, outcome in story.told)
    listed = "\n  ".join(commands)
    click.echo(f"""
Sluice is running.
  cache     {cache.url} (its CA: {cache.ca})
  upstream  {upstream.url} (its CA: {upstream.ca})
  data      {cache.data} and {upstream.data} (kept; rm -r {story.home} forgets them)
  logs      {cache.log}, {upstream.log}
  health    http://{cache.operations}/readyz, metrics beside it at /metrics
""")
    if happened:
        click.echo(f"What happened, and where the answers came from:\n{happened}\n")
    click.echo(f"Try in another terminal:\n  {listed}\n")


def _wait(*registries: RunningRegistry) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        say("Ctrl-C ends it")
        while True:
            for registry in registries:
                registry.require_running()
            time.sleep(0.5)

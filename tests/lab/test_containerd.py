"""One containerd of our own: it pulls by the CRI, runs what it pulled, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.isolated import (
    NAME,
    PASSWORD,
    USER,
    WAIT_S,
    Site,
    mounts_of,
    needs_lab,
    processes_of,
    site,
)
from sluice.errors import ConfigInvalid, PullFailed, Unavailable
from sluice.lab.containerd import Containerd
from sluice.lab.containerd_config import ContainerdPlace, installed_version, render_config
from sluice.lab.cri import Auth, Runtime, pull
from sluice.lab.images import Ballast, build_image, build_pause, find_busybox, push

pytestmark = needs_lab
LOGIN = Auth(USER, PASSWORD)
BALLAST = 3 << 20


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    with site() as made:
        layout = made.directory / "layout"
        build_image(layout, find_busybox(), "1", [Ballast(BALLAST)])
        push(layout, "1", made.destination("demo/hello"))
        build_pause(made.directory / "pause-layout", find_busybox(), "1")
        push(made.directory / "pause-layout", "1", made.destination("pause"))
        yield made


@pytest.fixture(scope="module")
def digest(here: Site) -> str:
    return build_image(here.directory / "again", find_busybox(), "1", [Ballast(BALLAST)])


@pytest.fixture(scope="module")
def containerd(here: Site) -> Iterator[Containerd]:
    running = here.containerd("node")
    running.start()
    try:
        running.wait_ready()
        yield running
    finally:
        running.remove()


@pytest.mark.parametrize("by", [":1", "@{digest}"])
def test_pulls_by_tag_and_by_digest(containerd: Containerd, digest: str, by: str) -> None:
    """PullImage with a login gives the image's id; ImageStatus and ListImages know it by name; RemoveImage forgets."""
    reference = f"{NAME}/demo/hello{by.format(digest=digest)}"
    image = pull(containerd.place.socket, reference, LOGIN)
    with Runtime(containerd.place.socket) as runtime:
        held = runtime.status(reference)
        assert held is not None
        assert (image, [f"{NAME}/demo/hello@{digest}"]) == (held.id, list(held.digests))
        assert held.size > BALLAST
        assert [image] == [one.id for one in runtime.images()]
        runtime.remove(reference)
        runtime.remove(image)
        assert (None, ()) == (runtime.status(reference), runtime.images())


def test_what_was_pulled_runs_in_the_nodes_network(containerd: Containerd, here: Site) -> None:
    """The image's own command says hello; another one sees the namespace that the node is in."""
    reference = f"{NAME}/demo/hello:1"
    pull(containerd.place.socket, reference, LOGIN)
    assert containerd.run(reference).startswith("Hello from a container")
    outside = subprocess.check_output([*here.prefix, "readlink", "/proc/self/ns/net"], text=True)
    assert outside == containerd.run(reference, "/bin/busybox", "readlink", "/proc/self/ns/net")
    assert str(BALLAST) == containerd.run(reference, "/bin/busybox", "stat", "-c", "%s", "/ballast-0").strip()


@pytest.mark.parametrize(
    ("image", "auth", "reason"),
    [
        ("demo/hello:none", LOGIN, "not found"),
        ("demo/hello:1", None, "401|authorization failed"),
        ("demo/hello:1", Auth(USER, "wrong"), "401|authorization failed"),
        ("demo/hello@sha256:" + "0" * 64, LOGIN, "not found"),
    ],
)
def test_failures_give_the_runtimes_reason(containerd: Containerd, image: str, auth: Auth | None, reason: str) -> None:
    """A failed pull names the image and what containerd said; the password is not in it."""
    with pytest.raises(PullFailed) as caught:
        pull(containerd.place.socket, f"{NAME}/{image}", auth)
    assert caught.value.message.startswith(f"{NAME}/{image} could not be pulled: ")
    assert re.search(reason, caught.value.message)
    assert "wrong" not in caught.value.message


def test_a_pull_that_takes_too_long_says_so(containerd: Containerd) -> None:
    """The caller's limit is the reason."""
    with pytest.raises(PullFailed, match=r"not done within 0\.001 s$"):
        pull(containerd.place.socket, f"{NAME}/demo/hello:1", LOGIN, timeout_s=0.001)


def test_no_runtime_is_told_from_a_failed_pull(tmp_path: Path) -> None:
    """Where nobody listens, every call but the pull says that nobody answers."""
    with Runtime(tmp_path / "none.sock") as runtime, pytest.raises(Unavailable, match="does not answer"):
        runtime.version()


def test_the_version_is_the_installed_one(containerd: Containerd) -> None:
    """The running daemon says what ``containerd --version`` said before, and serves the API that the client speaks."""
    with Runtime(containerd.place.socket) as runtime:
        said = runtime.version()
    major, minor = installed_version()
    assert ("containerd", "v1") == (said.name, said.api)
    assert said.version.startswith(f"{major}.{minor}.")


def test_stop_leaves_nothing(here: Site) -> None:
    """A container that would run on and the daemon end: no process, mount, cgroup or shim's socket is left."""
    left_running(here, "stopped", crash=False)


def test_stop_after_a_crash_leaves_nothing(here: Site) -> None:
    """The daemon was killed with a container running, and somebody else tidies up: the same holds."""
    left_running(here, "crashed", crash=True)


def left_running(here: Site, name: str, crash: bool) -> None:
    sockets = shim_sockets()
    running = here.containerd(name)
    running.start()
    running.wait_ready()
    reference = f"{NAME}/demo/hello:1"
    pull(running.place.socket, reference, LOGIN)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(running.run, reference, "/bin/sh", "-c", "while true; do sleep 1000; done")
        deadline = time.monotonic() + WAIT_S
        while not (states := list(running.place.runc.glob("*/*/state.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert states
        if crash:
            running.kill()
        # Only the directory's name is needed.
        here.containerd(name).remove()
        running.stop()
        with pytest.raises(Unavailable):
            done.result(WAIT_S)
    assert not running.place.directory.exists()
    assert ([], []) == (processes_of(running.place.directory), mounts_of(running.place.directory))
    assert sockets == shim_sockets()
    container = states[0].parent.name
    assert [] == list(Path("/sys/fs/cgroup").rglob(f"*{container}*"))


def shim_sockets() -> set[str]:
    return set(os.listdir("/run/containerd/s"))


def test_stop_leaves_no_pod(here: Site) -> None:
    """A pod that nobody removed ends with the daemon, and nothing of it is left."""
    sockets = shim_sockets()
    running = here.containerd("pod")
    running.start()
    try:
        running.wait_ready()
        with Runtime(running.place.socket) as runtime:
            runtime.pull(running.place.sandbox_image, LOGIN)
            sandbox = runtime.run_sandbox("left", "/")
        assert [] != list(Path("/sys/fs/cgroup").rglob(f"*{sandbox}*"))
    finally:
        running.remove()
    assert ([], []) == (processes_of(running.place.directory), mounts_of(running.place.directory))
    assert sockets == shim_sockets()
    assert [] == [*Path("/sys/fs/cgroup").rglob(f"*{sandbox}*"), *Path("/run/containerd/runc").rglob(sandbox)]


def test_a_pods_image_is_fetched_with_nobodys_login(containerd: Containerd) -> None:
    """The runtime has a login from pulls, and does not use it for the image of a sandbox: the registry refuses."""
    with Runtime(containerd.place.socket) as runtime:
        runtime.pull(f"{NAME}/demo/hello:1", LOGIN)
        with pytest.raises(Unavailable, match=r"could not run a sandbox: .*(401|authorization failed)"):
            runtime.run_sandbox("refused", "/")


def test_a_start_over_a_running_one_does_nothing(containerd: Containerd, here: Site) -> None:
    """Starting again, even from elsewhere, keeps the daemon; so does asking whether it is ready."""
    pid = containerd.pid
    again = here.containerd("node")
    again.start()
    again.wait_ready()
    assert pid is not None
    assert pid == again.pid


def test_a_killed_one_starts_again_with_its_images(here: Site) -> None:
    """What was pulled before a crash is there after the next start."""
    running = here.containerd("again")
    try:
        running.start()
        running.wait_ready()
        image = pull(running.place.socket, f"{NAME}/demo/hello:1", LOGIN)
        running.kill()
        assert running.pid is None
        running.start()
        running.wait_ready()
        with Runtime(running.place.socket) as runtime:
            assert [image] == [one.id for one in runtime.images()]
    finally:
        running.remove()


def test_one_that_cannot_start_says_why(here: Site) -> None:
    """A daemon that ends by itself is an error with its last words."""
    running = here.containerd("broken")
    (running.place.directory / "root").parent.mkdir()
    (running.place.directory / "root").write_text("no directory")
    try:
        running.start()
        with pytest.raises(Unavailable, match=r"^containerd ended by itself: .*not a directory"):
            running.wait_ready()
    finally:
        running.remove()


def test_five_start_together(here: Site) -> None:
    """A cluster's nodes each have one, started at once; each answers for itself."""
    nodes = [here.containerd(f"n{at}") for at in range(5)]
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_ready()
        assert 5 == len({node.pid for node in nodes})
    finally:
        for node in nodes:
            node.remove()


@pytest.mark.parametrize("version", [(1, 6), (1, 7), (2, 0), (2, 1), (2, 3)])
def test_every_path_lies_in_the_directory(version: tuple[int, int]) -> None:
    """Of each version's configuration, every path is below the node's own directory."""
    place = ContainerdPlace(Path("/lab/n1"), Path("/lab/n1/certs.d"), f"{NAME}/pause:1")
    text = render_config(place, version, "overlayfs")
    paths = [value for line in text.splitlines() if (value := line.partition(" = ")[2].strip('"')).startswith("/")]
    assert len(paths) >= 8
    assert [] == [path for path in paths if not path.startswith("/lab/n1/")]
    assert f'"{NAME}/pause:1"' in text


def test_a_directory_too_long_for_a_socket_is_refused() -> None:
    """unix(7) ends a socket's path at 107 bytes, and the message says what to do."""
    with pytest.raises(ConfigInvalid, match="choose a shorter one"):
        ContainerdPlace(Path("/" + "long" * 30), Path("/hosts"), "pause")

"""The bell that an agent sleeps by, with real processes, signals and files."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.running import watches
from sluice.node.bell import RINGS_MAX, UNREST_S, Bell

LONG_S, SHORT_S = 60.0, 0.01
MANY = 3_000  # more than the kernel's queue is read in at once, fewer than it holds
WAKE_UPS_MAX = 20  # for each UNREST_S: one that hears of a change, the rest after it, and the end


@pytest.fixture
def bell() -> Iterator[Bell]:
    with Bell() as one:
        yield one


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def test_a_ring_ends_the_next_sleep(bell: Bell) -> None:
    """However often it rang, one sleep ends; the next one lasts its time."""
    for _ in range(3):
        bell.ring()
    assert (True, False) == (bell.sleep(LONG_S), bell.sleep(SHORT_S))


def test_a_sleep_lasts_its_time(bell: Bell) -> None:
    """With nothing to end it, it is not shorter than was asked for."""
    before = time.monotonic()
    ended = bell.sleep(SHORT_S)
    assert (False, True) == (ended, time.monotonic() - before >= SHORT_S)


def test_a_signal_handler_may_ring(bell: Bell) -> None:
    """A signal that comes in the middle of a sleep ends it by way of the bell."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: bell.ring())
    try:
        signal.setitimer(signal.ITIMER_REAL, SHORT_S)
        assert bell.sleep(LONG_S)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_ringing_without_end_does_no_harm(bell: Bell) -> None:
    """A line that is full takes no more, and nobody waits for it."""
    for _ in range(20 * RINGS_MAX):
        bell.ring()
    assert bell.sleep(LONG_S)


def test_the_end_of_a_process_ends_the_sleep(bell: Bell) -> None:
    """It is known as gone from then on, and no later sleep is cut short by it."""
    process = sleeper()
    bell.watch(process.pid)
    bell.watch(process.pid)
    watched = bell.gone
    process.kill()
    assert (True, False, True) == (bell.sleep(LONG_S), watched, bell.gone)
    process.wait()
    assert not bell.sleep(SHORT_S)


def test_another_process_takes_its_place(bell: Bell) -> None:
    """The end of one that is watched no longer means nothing, and that of the present one does."""
    first, second = sleeper(), sleeper()
    bell.watch(first.pid)
    bell.watch(second.pid)
    first.kill()
    first.wait()
    seen = [bell.sleep(SHORT_S), bell.gone]
    second.kill()
    seen += [bell.sleep(LONG_S), bell.gone]
    second.wait()
    bell.watch(None)
    assert [False, False, True, True, False] == [*seen, bell.gone]


def test_a_process_that_has_ended_is_gone_at_once(bell: Bell) -> None:
    """Between the question that named it and the watch it may have ended."""
    process = sleeper()
    process.kill()
    process.wait()
    bell.watch(process.pid)
    assert bell.gone


def replace(file: Path) -> None:
    aside = file.with_name("aside")
    aside.write_text("new")
    aside.rename(file)


def swap_link(link: Path) -> None:
    """Have ..data lead to another directory, as a kubelet does with a mounted ConfigMap."""
    (link.parent / "second").mkdir()
    (link.parent / "second" / "layout.yaml").write_text("new")
    aside = link.parent / "aside"
    aside.symlink_to("second")
    aside.rename(link.parent / "..data")


def move_away(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda file: file.write_text("new"),
    "replaced": replace,
    "removed": lambda file: file.unlink(),
    "its mode": lambda file: file.chmod(0o600),
    "its directory moved away": move_away,
}


def followed(bell: Bell, *files: Path) -> list[bool]:
    """What the first and the second call say."""
    return [bell.follow(files), bell.follow(files)]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_file_ends_the_sleep(bell: Bell, tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Whatever happens to it, one sleep ends; the next one is not cut short by the same change."""
    file = tmp_path / "etc" / "layout.yaml"
    file.parent.mkdir()
    file.write_text("old")
    first = followed(bell, file)
    change(file)
    assert ([False, True], True, False) == (first, bell.sleep(LONG_S), bell.sleep(SHORT_S))


def test_a_file_that_comes_ends_the_sleep(bell: Bell, tmp_path: Path) -> None:
    """A file that does not exist yet is followed by its directory."""
    first = followed(bell, tmp_path / "layout.yaml")
    (tmp_path / "layout.yaml").write_text("new")
    assert ([False, True], True) == (first, bell.sleep(LONG_S))


def test_a_mounted_config_map_is_followed(bell: Bell, tmp_path: Path) -> None:
    """The link that leads to the files' directory is swapped; the directory that it leads to then is followed."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "layout.yaml").write_text("old")
    (tmp_path / "..data").symlink_to("first")
    file = tmp_path / "layout.yaml"
    file.symlink_to("..data/layout.yaml")
    seen = followed(bell, file)
    swap_link(file)
    seen += [bell.sleep(LONG_S), *followed(bell, file)]
    (tmp_path / "first" / "layout.yaml").write_text("left")
    seen.append(bell.sleep(SHORT_S))
    (tmp_path / "second" / "layout.yaml").write_text("newer")
    assert [False, True, True, False, True, False, True] == [*seen, bell.sleep(LONG_S)]


def test_a_link_that_leads_nowhere_is_followed(bell: Bell, tmp_path: Path) -> None:
    """To itself, or to what does not exist: it is another link that would be the change."""
    loop, dangling = tmp_path / "loop", tmp_path / "dangling"
    loop.symlink_to("loop")
    dangling.symlink_to("nothing")
    seen = followed(bell, loop, dangling)
    loop.unlink()
    assert [False, True, True] == [*seen, bell.sleep(LONG_S)]


def test_reading_a_file_ends_nothing(bell: Bell, tmp_path: Path) -> None:
    """The sleeper reads what it follows: that is no change."""
    file = tmp_path / "layout.yaml"
    file.write_text("old")
    followed(bell, file)
    assert ("old", False) == (file.read_text(), bell.sleep(SHORT_S))


def test_a_directory_that_comes_ends_the_sleep(bell: Bell, tmp_path: Path) -> None:
    """Where the way to a file ends, what is missing is followed, and then what comes behind it."""
    file = tmp_path / "later" / "on" / "layout.yaml"
    seen = followed(bell, tmp_path / "secrets.yaml", file)
    file.parent.parent.mkdir()
    seen += [bell.sleep(LONG_S), *followed(bell, tmp_path / "secrets.yaml", file)]
    file.parent.mkdir()
    seen += [bell.sleep(LONG_S), *followed(bell, tmp_path / "secrets.yaml", file)]
    file.write_text("new")
    assert [False, True, True, False, True, True, False, True, True] == [*seen, bell.sleep(LONG_S)]


def test_a_release_that_is_swapped_ends_the_sleep(bell: Bell, tmp_path: Path) -> None:
    """A link may be anywhere on the way, and lead by way of others: each of them is followed."""
    for number in ("1", "2"):
        (tmp_path / "releases" / number / "etc").mkdir(parents=True)
        (tmp_path / "releases" / number / "etc" / "layout.yaml").write_text(number)
    (tmp_path / "current").symlink_to("releases/now")
    (tmp_path / "releases" / "now").symlink_to(tmp_path / "releases" / "x" / ".." / "1")
    (tmp_path / "releases" / "x").mkdir()
    file = tmp_path / "current" / "etc" / "layout.yaml"
    seen = [*followed(bell, file), file.read_text() == "1"]
    aside = tmp_path / "releases" / "aside"
    aside.symlink_to("2")
    aside.rename(tmp_path / "releases" / "now")
    seen += [bell.sleep(LONG_S), *followed(bell, file), file.read_text() == "2"]
    (tmp_path / "current").unlink()
    assert [False, True, True, True, False, True, True, True] == [*seen, bell.sleep(LONG_S)]


def test_what_else_happens_in_a_directory_ends_nothing(bell: Bell, tmp_path: Path) -> None:
    """Other files there may come, change and go as they like; a burst of them is over when it is over."""
    file = tmp_path / "layout.yaml"
    file.write_text("old")
    followed(bell, file)
    for number in range(MANY):
        (tmp_path / f"other{number}").touch()
    seen = [bell.sleep(SHORT_S), bell.stirred]
    file.write_text("new")
    assert [False, False, True, True] == [*seen, bell.sleep(LONG_S), bell.stirred]


def test_a_busy_directory_is_not_listened_to_all_the_time(bell: Bell, tmp_path: Path) -> None:
    """While another file there changes without end, a sleep is as long as it should be and wakes a few times only; the
    file's own change ends it all the same."""
    file, other, stop = tmp_path / "layout.yaml", tmp_path / "other", threading.Event()
    followed(bell, file)

    def change() -> None:
        while not stop.wait(SHORT_S):
            other.write_text("new")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        before = switches()
        slept = bell.sleep(3 * UNREST_S)
        woken = switches() - before
        file.write_text("new")
        assert (False, True, True) == (slept, woken <= WAKE_UPS_MAX, bell.sleep(LONG_S)), woken
    finally:
        stop.set()
        thread.join()


def switches() -> int:
    """How often this thread has waited for something."""
    lines = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary")))


def test_no_watch_is_left_behind(bell: Bell, tmp_path: Path) -> None:
    """Whatever was followed before, as many directories are watched as there are on the way now."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        followed(bell, tmp_path / str(number) / "layout.yaml", tmp_path / "none" / "secrets.yaml")
    assert [2] == watches()


def test_a_directory_in_the_place_of_another_is_followed(bell: Bell, tmp_path: Path) -> None:
    """It is another directory under the same name, and what happens to the one before means nothing."""
    file = tmp_path / "etc" / "layout.yaml"
    file.parent.mkdir()
    followed(bell, file)
    move_away(file)
    file.parent.mkdir()
    seen = [bell.sleep(LONG_S), *followed(bell, file)]
    (tmp_path / "moved" / "layout.yaml").write_text("old")
    seen.append(bell.sleep(SHORT_S))
    file.write_text("new")
    assert [True, False, True, False, True] == [*seen, bell.sleep(LONG_S)]


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process may open nothing; what the kernel says is the same as for a user whose inotify instances are taken
    (EMFILE), and no other process on the machine suffers."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_kernel_with_no_room_is_no_following(bell: Bell, tmp_path: Path) -> None:
    """Where it has no instance to give, the sleeper looks by itself, and follows when there is one."""
    file = tmp_path / "layout.yaml"
    with no_descriptor_left():
        seen = followed(bell, file)
    assert [False, False, False, True] == [*seen, *followed(bell, file)]


def test_a_ring_after_the_end_is_nothing() -> None:
    """A signal may still come when the sleeper has left."""
    with Bell() as bell:
        pass
    bell.ring()


def test_it_leaves_no_descriptor(tmp_path: Path) -> None:
    """Whatever was watched, a closed bell has closed all of its own."""
    before = os.listdir("/proc/self/fd")
    process = sleeper()
    with Bell() as bell:
        bell.watch(process.pid)
        bell.follow([tmp_path / "layout.yaml"])
    process.kill()
    process.wait()
    assert before == os.listdir("/proc/self/fd")

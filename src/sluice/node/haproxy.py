"""Running HAProxy: started once, outliving who started it, and reloaded without cutting a stream.

``balancer`` says what is configured, ``apply`` writes that file, and the agent calls ``Balancer.ensure`` after it
(where the kubelet runs it: ``haproxy_pod``). HAProxy runs from a copy that only a configuration which it has found good
ever becomes, so that a bad one neither stops what runs nor a later start. It runs as a master with one worker; at a
reload the new worker takes the listening sockets over and the old one finishes its streams (HAProxy 2.6 management
guide, sections 3 and 4). One that hangs would keep runtimes waiting, which have connected and try no other host: it is
killed and started anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from sluice.cluster.layout import NodeLayout
from sluice.errors import ConfigInvalid
from sluice.node.balancer import ADMIN_SOCKET, BACKEND, CONFIG_NAME, STATE_FILE, config_path, run_directory
from sluice.node.haproxy_config import parse_config
from sluice.node.haproxy_processes import Marks, find_processes, is_stopped, kill_processes, process_state
from sluice.node.haproxy_state import BalancerState, fingerprint, parse_info, parse_replicas, port_remedy
from sluice.pki.durable import make_directory, read_bounded, remove_torn, write_durably

PROGRAM = "haproxy"
PID_FILE, LOCK_FILE = "haproxy.pid", "lock"
CONFIG_BYTES_MAX = 1 << 20
CHECK_S, START_S, RELOAD_S, STOP_S, ANSWER_S, LOCK_S = 10.0, 10.0, 10.0, 5.0, 2.0, 60.0
POLL_S, AGAIN_S, RELOAD_AGAIN_S = 0.02, 1.0, 2.5
HUNG_S, HUNG_TRIES, HUNG_PAUSE_S = 4.0, 2, 0.2
"""How long it may answer nothing, after the first question that it left unanswered, and how often it is asked in that
time at least (a machine that stood still lets time pass, not questions)."""
SERVERS = 4  # the kind of thing that "show stat" is to tell about (management guide, section 9.3)
QUESTION = f"show info; show stat {BACKEND} {SERVERS} -1"
SAID_LENGTH_MAX = 600  # characters of HAProxy's complaint that are passed on

Done = Literal["started", "reloaded", "unchanged"]


def check_config(content: bytes) -> None:
    """Have HAProxy judge a configuration whose CA and certificate files are in place. Raises ConfigInvalid."""
    try:
        done = subprocess.run(
            [PROGRAM, "-c", "-f", "/dev/stdin"], input=content, capture_output=True, timeout=CHECK_S, check=False
        )
    except FileNotFoundError:
        raise ConfigInvalid("haproxy is not installed: install it (Debian: apt-get install haproxy)") from None
    except subprocess.TimeoutExpired:
        raise ConfigInvalid(f"haproxy did not judge the balancer's configuration within {CHECK_S:g} s") from None
    if done.returncode:
        raise ConfigInvalid(f"haproxy refuses the balancer's configuration: {_said(done.stderr)}")


class Balancer:
    """The balancer whose configuration is the file ``config``; ``directory`` is its own, for sockets and copies.

    ``prefix`` goes before the command that starts it (``ip netns exec NAME``). ``hung``: one that answered
    nothing has been killed by this object.
    """

    def __init__(self, config: Path, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.config = config
        self.directory = directory
        self.hung = False
        self._prefix = tuple(prefix)

    @classmethod
    def of(cls, layout: NodeLayout, prefix: Sequence[str] = ()) -> Balancer:
        """The one of a node."""
        return cls(Path(config_path(layout)), Path(run_directory(layout)), prefix)

    def ensure(self) -> Done:
        """Have it run on what the file says now; one that hangs is killed first.

        Raises ConfigInvalid where HAProxy refuses the file or cannot run on it; what ran before then runs on, and where
        nothing ran, it has been started on the last good configuration.
        """
        make_directory(self.directory)
        with self.locked():
            try:
                wanted = self.wanted()
                if self._runs_on(wanted):
                    return "unchanged"
                self._end_hung()
                if self._runs_on(wanted):
                    return "unchanged"  # it was busy for a moment
                check_config(wanted)
            except ConfigInvalid:
                if self._master() is None and self._good.exists():
                    self._start()
                raise
            return self._change(wanted)

    def state(self) -> BalancerState:
        """What runs and what it sees. Never raises for a balancer that does not answer."""
        pid = self._master()
        try:
            answer = self.ask(QUESTION)
            info, _, stat = answer.partition("\n\n")
            replicas = parse_replicas(stat, time.time())
        except (OSError, ValueError):
            return BalancerState(pid, None)
        return BalancerState(pid, parse_info(info).get("description", ""), replicas, fingerprint(answer))

    def is_as(self, before: BalancerState) -> bool:
        """Whether the one that answers is the one that answered then, and says the same of itself and its replicas."""
        try:
            return before.running and fingerprint(self.ask(QUESTION)) == before.fingerprint
        except OSError:
            return False

    def log(self) -> str:
        """Its last events: replicas that went and came, requests that failed. Empty where it does not answer."""
        try:
            return self.ask("show events events")
        except OSError:
            return ""

    def stop(self, drain_s: float = 0.0) -> None:
        """End it; streams in progress have ``drain_s`` seconds to finish."""
        if not self.directory.exists():
            return
        with self.locked():
            master = self._master()
            if master is None and not (self.directory / PID_FILE).exists():
                return
            if master is not None:
                self._end(master, drain_s)
            kill_processes(self._marks, self.directory)  # workers that were stopped do not end with their master
            for name in (PID_FILE, STATE_FILE):
                (self.directory / name).unlink(missing_ok=True)
            if not self.state().running:  # the kubelet may have started one meanwhile, and the socket is that one's
                (self.directory / ADMIN_SOCKET).unlink(missing_ok=True)

    def _end(self, master: int, drain_s: float) -> None:
        with _process(master) as process:
            # A master that has just started executes itself anew, and loses what comes then: it is asked again.
            asked = [(signal.SIGUSR1, min(AGAIN_S, drain_s - at)) for at in _steps(drain_s, AGAIN_S)]
            for number, wait_s in (*asked, (signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
                if self._owns(master) and _end(process, number, wait_s):
                    break

    def ask(self, command: str, name: str = ADMIN_SOCKET) -> str:
        """One command to one of its sockets (management guide, section 9.3). Raises OSError where nothing answers."""
        folder = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(ANSWER_S)
                # By descriptor, because a socket's address must not be longer than 107 characters.
                line.connect(f"/proc/self/fd/{folder}/{name}")
                line.sendall(command.encode() + b"\n")
                line.shutdown(socket.SHUT_WR)  # a master waits for another command otherwise
                return b"".join(iter(lambda: line.recv(1 << 16), b"")).decode(errors="replace")
        finally:
            os.close(folder)

    def keep_servers(self) -> None:
        """Write down how replicas are and since when, for the process that takes over, if this one tells it."""
        with contextlib.suppress(OSError):
            write_durably(self.directory / STATE_FILE, self.ask("show servers state").encode())

    @property
    def _good(self) -> Path:
        return self.directory / CONFIG_NAME

    def wanted(self) -> bytes:
        """What its file says. Raises ConfigInvalid where there is none."""
        content = read_bounded(self.config, CONFIG_BYTES_MAX)
        if content is None:
            raise ConfigInvalid(f"{self.config} does not exist: apply a layout with a balancer first")
        return content

    def _runs_on(self, wanted: bytes) -> bool:
        return self._master() is not None and self.state().config == config_digest(wanted)

    def _change(self, wanted: bytes) -> Done:
        before = read_bounded(self._good, CONFIG_BYTES_MAX)
        write_durably(self._good, wanted)
        try:
            if self._master() is None:
                self._start()
                return "started"
            self._reload(config_digest(wanted))
        except ConfigInvalid:
            if before is None and self._master() is None:
                self._leave_nothing()
            elif before is not None:
                write_durably(self._good, before)
                if self._master() is None:
                    self._start()
            raise
        return "reloaded"

    def _leave_nothing(self) -> None:
        """After a first start that failed: no copy that has never run, and no directory that nobody takes away."""
        for name in (CONFIG_NAME, PID_FILE, ADMIN_SOCKET, STATE_FILE, LOCK_FILE):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            self.directory.rmdir()

    def _start(self) -> None:
        (self.directory / STATE_FILE).unlink(
            missing_ok=True
        )  # of a process that is gone: nobody knows how they are now
        flags = ("-W", "-D", "-C", str(self.directory), "-p", PID_FILE, "-f", str(self._good))
        try:
            done = subprocess.run(
                [*self._prefix, PROGRAM, *flags], stdin=subprocess.DEVNULL, capture_output=True, timeout=START_S,
                check=False,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise ConfigInvalid(f"{error.filename} is not installed: install it (Debian: haproxy)") from None
        except subprocess.TimeoutExpired:
            raise ConfigInvalid(f"haproxy did not start within {START_S:g} s") from None
        if done.returncode:
            said = _said(done.stderr)
            raise ConfigInvalid(f"haproxy does not start: {said}{port_remedy(said)}")
        if not wait(lambda: self.state().running, START_S):
            raise ConfigInvalid(f"haproxy has started and does not answer on {self.directory / ADMIN_SOCKET}")

    def _reload(self, digest: str) -> None:
        self.keep_servers()
        for at in _steps(RELOAD_S, RELOAD_AGAIN_S):
            master = self._master()
            if master is not None:
                with _process(master) as process:
                    signal.pidfd_send_signal(process, signal.SIGUSR2)
            if wait(lambda: self.state().config == digest, min(RELOAD_AGAIN_S, RELOAD_S - at)):
                break
        else:
            raise ConfigInvalid(
                f"haproxy did not take the configuration in {self.config} over within {RELOAD_S:g} s, and goes on with"
                " the one before; is the port taken?"
            )

    def _master(self) -> int | None:
        raw = read_bounded(self.directory / PID_FILE, 64)
        pid = int(raw) if raw is not None and raw.strip().isdigit() else None
        return pid if pid is not None and self._owns(pid) else None

    def _owns(self, pid: int) -> bool:
        """Whether this process is our master: PIDs are used again, and ours is the one that was started on our copy."""
        try:
            state = process_state(pid)
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return state != "Z" and os.fsencode(self._good) in words

    @property
    def _marks(self) -> Marks:
        """What our master's command line has, and those of its workers; nobody else starts one so."""
        return frozenset({(b"-p", PID_FILE.encode()), (b"-f", os.fsencode(self._good))})

    def _end_hung(self) -> None:
        """Kill it with all its workers if it hangs. To be called locked, so that nobody starts or reloads it now."""
        if not self._hangs():
            return
        self.hung = True
        if not kill_processes(self._marks, self.directory):
            raise ConfigInvalid("haproxy answers nothing and cannot be killed: look at what its disk or machine does")

    def _hangs(self) -> bool:
        """Whether it lives and answers nothing for HUNG_S."""
        deadline, tries = time.monotonic() + HUNG_S, 0
        while (found := find_processes(self._marks, self.directory)) and self._is_silent(found):
            tries += 1
            if tries >= HUNG_TRIES and time.monotonic() >= deadline:
                return True
            time.sleep(HUNG_PAUSE_S)
        return False

    def _is_silent(self, processes: Sequence[int]) -> bool:
        try:
            self.ask("show info")
        except FileNotFoundError:
            return False  # somebody has removed the socket: it may serve all the same, and a reload makes another
        except ConnectionRefusedError:
            return any(map(is_stopped, processes))  # or it is on its way out, its last streams with it
        except OSError:
            return True
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes what runs. Raises ConfigInvalid where another one takes very long."""
        with (self.directory / LOCK_FILE).open("ab") as file:
            if not wait(lambda: _try_lock(file.fileno()), LOCK_S):
                raise ConfigInvalid(f"another process has been changing the balancer in {self.directory} for long")
            remove_torn(self.directory, (CONFIG_NAME, STATE_FILE))  # nobody else writes them now
            yield


@functools.lru_cache(maxsize=2)  # an agent asks every few seconds
def config_digest(content: bytes) -> str:
    """The one that the configuration carries. Raises ConfigInvalid for a file that is not ours."""
    try:
        found = [one.all("description") for one in parse_config(content) if one.kind == "global"]
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"the balancer's configuration is none that Sluice has written: {error}") from None
    if not found or len(found[0]) != 1 or len(found[0][0]) != 1:
        raise ConfigInvalid("the balancer's configuration is none that Sluice has written: apply the layout again")
    return found[0][0][0]


def _said(raw: bytes) -> str:
    """HAProxy's alerts in one line, else all that it said."""
    lines = raw.decode(errors="replace").splitlines()
    alerts = [line.partition(" : ")[2] for line in lines if line.startswith("[ALERT]")]
    return "; ".join(alerts or lines)[:SAID_LENGTH_MAX]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(done: Callable[[], bool], within_s: float) -> bool:
    """Ask until it is so; False where it is not within this time."""
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor that means this process alone, also after its end."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _steps(whole_s: float, step_s: float) -> Iterator[float]:
    at = 0.0
    while at < whole_s:
        yield at
        at += step_s


def _end(process: int, number: signal.Signals, within_s: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
    return bool(select.select([process], [], [], within_s)[0])

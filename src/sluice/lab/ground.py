"""The ground a laboratory stands on: its namespaces, how they are made, found, entered and ended.

A laboratory is a PID namespace with a mount namespace of its own; network namespaces and the nodes' mount namespaces
are kept by names inside it. Nothing of that can be seen from outside, and all of it ends with its first process
(``init``). That process is never looked up in a file that might be old: it is the one whose environment names the
laboratory's directory, as the kernel knows it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.init import READY, STAY
from sluice.lab.mounts import keeper_of
from sluice.lab.topology import Machine

DIRECTORY_VARIABLE, PART_VARIABLE = "SLUICELAB_DIRECTORY", "SLUICELAB_PART"
END_S = 20.0
"""How long the kernel may take to end a laboratory's processes, in seconds."""
STEP_S = 60.0
"""How long one command inside may take, in seconds."""
WORDS_BYTES_MAX = 4096
NEEDED = ("unshare", "nsenter", "setsid", "ip", "bridge", "mount", "containerd", "haproxy", "docker-registry", "skopeo")
CAP_SYS_ADMIN, CAP_NET_ADMIN = 21, 12
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Ground:
    """A laboratory's namespaces. ``init`` is its first process as this machine counts."""

    directory: Path
    init: int

    def inside(self, path: str) -> Path:
        """A path of the laboratory as this process reaches it."""
        return Path(f"/proc/{self.init}/root{path}")

    def enter(self, command: Sequence[str], machine: Machine | None = None) -> list[str]:
        """The command that runs ``command`` on a machine, or among all of them."""
        entry = ["nsenter", f"--target={self.init}", "--pid"]
        if machine is None:
            return [*entry, "--mount", "--net", "--", *command]
        mounts = f"={self._mounts_of(machine)}" if machine.is_node else ""
        return [*entry, f"--net={self.inside(f'/run/netns/{machine.name}')}", f"--mount{mounts}", "--", *command]

    def _mounts_of(self, machine: Machine) -> Path:
        try:
            keeper = int(self.inside(keeper_of(machine)).read_text(encoding="ascii"))
        except (OSError, ValueError):
            raise Unavailable(f"{machine.name} is not there yet, or no longer: see sluice lab status") from None
        return self.inside(f"/proc/{keeper}/ns/mnt")

    def run(self, command: Sequence[str], machine: Machine | None = None, seconds: float = STEP_S) -> str:
        """Run to the end and return its standard output; raises Unavailable with what it said."""
        try:
            done = subprocess.run(
                self.enter(command, machine),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                env=environment(self.directory),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{shlex.join(command)[:200]} did not end within {seconds:.0f} s") from error
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise Unavailable(f"{shlex.join(command)[:200]} failed: {' / '.join(words) or done.returncode}")
        return done.stdout

    def run_all(self, commands: Iterable[Sequence[str]]) -> None:
        """Run commands among all machines, one after the other, up to the first that fails."""
        self.run(["sh", "-euc", "\n".join(shlex.join(command) for command in commands)])

    def start(self, part: str, machine: Machine, command: Sequence[str], log: Path, extra: Mapping[str, str]) -> None:
        """Start a program that goes on without us; it is known by ``part`` in its environment. Raises Unavailable."""
        with log.open("ab") as sink:
            started = subprocess.run(
                self.enter(["setsid", "--fork", *command], machine),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**environment(self.directory), PART_VARIABLE: part, **extra},
                timeout=STEP_S,
                check=False,
            )
        _require_started(part, started.returncode, log)

    def start_outside(self, part: str, command: Sequence[str], log: Path, listener: socket.socket) -> None:
        """Start a program that is the laboratory's, but lives in this machine's network; ``listener`` is its input."""
        with log.open("ab") as sink:
            started = subprocess.run(
                ["nsenter", f"--target={self.init}", "--pid", "--", "setsid", "--fork", *command],
                stdin=listener.fileno(),
                stdout=sink,
                stderr=sink,
                env={**environment(self.directory), PART_VARIABLE: part},
                timeout=STEP_S,
                check=False,
            )
        _require_started(part, started.returncode, log)

    def listen(self, machine: Machine, address: tuple[str, int]) -> socket.socket:
        """A TCP socket that listens in a machine's network; raises OSError."""
        made = _socket_in(self.inside(f"/run/netns/{machine.name}"))
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen()
        except BaseException:
            made.close()
            raise
        return made

    def connect(self, machine: Machine, address: tuple[str, int], seconds: float) -> socket.socket:
        """A TCP connection made in a machine's network; raises OSError."""
        found = _socket_in(self.inside(f"/run/netns/{machine.name}"))
        try:
            found.settimeout(seconds)
            found.connect(address)
        except BaseException:
            found.close()
            raise
        return found


class Beginning:
    """A laboratory that is being made. A context manager: leaving before ``stay`` ends it; so does our death.

    ``ground`` is there from the moment of entering.
    """

    ground: Ground

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = ["unshare", "--pid", "--fork", "--mount", "--ipc", "--uts", "--net", "--mount-proc"]
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("init.py"))]
        self._process = subprocess.Popen(
            [*command, "--", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env=environment(self._directory),
        )
        try:
            self.ground = self._made(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def _made(self, process: subprocess.Popen[bytes]) -> Ground:
        if _stream(process.stdout).readline() != READY:
            words = _stream(process.stderr).read(WORDS_BYTES_MAX).decode("utf-8", "replace")
            raise Unavailable(f"the laboratory's namespaces could not be made: {' '.join(words.split())}")
        init = find_init(self._directory)
        if init is None:
            raise Unavailable("the laboratory ended at once: another command ended it")
        return Ground(self._directory, init)

    def stay(self) -> None:
        """From now on it outlives us."""
        assert self._process is not None
        stdin = _stream(self._process.stdin)
        stdin.write(STAY)
        stdin.close()
        _close_outputs(self._process)
        # It is nobody's child from now on; the variable was the only thing that a destructor would complain about.
        self._process.returncode = 0
        self._process = None

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _stream(process.stdin).close()
            end(self._directory)
            process.wait(END_S)
            _close_outputs(process)


def _close_outputs(process: subprocess.Popen[bytes]) -> None:
    _stream(process.stdout).close()
    _stream(process.stderr).close()


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def require_root() -> None:
    """Raises Unavailable where we may not look into other namespaces, let alone make them."""
    if os.geteuid() != 0 or not _is_capable():
        raise Unavailable(
            "a laboratory needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, for network, mount and PID namespaces:"
            " run it with sudo, or in a privileged container"
        )


def require_means() -> None:
    """Raises Unavailable or ConfigInvalid with what this machine lacks for a laboratory."""
    require_root()
    missing = [program for program in NEEDED if shutil.which(program, path=_search_path()) is None]
    if missing:
        raise ConfigInvalid(f"a laboratory needs {', '.join(missing)}: run scripts/setup run, or install them")


def environment(directory: Path) -> dict[str, str]:
    """What a laboratory's programs inherit: nothing that configures Sluice by accident, and the laboratory's mark."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM") if name in os.environ}
    return {**kept, "PATH": _search_path(), "HOME": "/root", DIRECTORY_VARIABLE: str(directory)}


def find_init(directory: Path) -> int | None:
    """The first process of the laboratory in a directory, if one runs."""
    mark = f"{DIRECTORY_VARIABLE}={directory}".encode()
    return next((pid for pid in marked_processes(mark) if _is_first(pid)), None)


def marked_processes(mark: bytes) -> Iterable[int]:
    """Every process in whose environment a variable has this value."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if mark in found.split(b"\0"):
                yield int(entry)


def end(directory: Path) -> bool:
    """End the laboratory with everything in it, at once; whether one ran. Raises Unavailable when it does not go."""
    ended = False
    deadline = time.monotonic() + END_S
    while (init := find_init(directory)) is not None:
        ended = True
        _kill(init)
        if time.monotonic() > deadline:
            raise Unavailable(f"process {init} does not end although it was killed: something in it waits for a device")
        time.sleep(0.02)
    return ended


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_first(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    inner = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(inner) > 1 and inner[-1] == "1"


def _is_capable() -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    held = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return all(held >> number & 1 for number in (CAP_SYS_ADMIN, CAP_NET_ADMIN))


def _search_path() -> str:
    own = str(Path(sys.executable).parent)
    return ":".join([own, os.environ.get("PATH", "/usr/bin:/bin"), "/usr/local/sbin:/usr/sbin:/sbin"])


def _socket_in(network: Path) -> socket.socket:
    """A TCP socket belongs to the network of the thread that makes it, so a thread goes there and ends."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            _go_to(network)
            made.append(socket.socket())
        except OSError as error:
            made.append(error)

    worker = threading.Thread(target=make)
    worker.start()
    worker.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _go_to(network: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with network.open("rb") as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(network))


def _require_started(part: str, code: int, log: Path) -> None:
    """Raises Unavailable. Who kills a part may meet what starts it."""
    if code < 0:
        raise Unavailable(f"{part} ended by itself (signal {-code}) while it was started: see {log}")
    if code:
        raise Unavailable(f"{part} could not be started: see {log}")

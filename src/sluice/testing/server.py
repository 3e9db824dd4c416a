"""A real Sluice server in a process of its own, for tests that speak to it over real sockets.

``SluiceServer`` starts ``sluice serve`` on free loopback ports with a data directory that outlives it, so that a test
can kill it at any instant and start it again on the same data.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 30.0
STOP_S = 60.0
PORTS = range(12_000, 32_000)
PORT_TRIES = 100


_given: set[int] = set()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago; for long, not one that this process has been given before.

    It lies below the ports that the kernel gives to clients (32768 on Linux): one of those could be somebody's outgoing
    connection by the time a server wants it, all the more over many restarts.
    """
    if 2 * len(_given) > len(PORTS):
        _given.clear()
    for port in random.sample([port for port in PORTS if port not in _given], PORT_TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise AssertionError(f"no free port among {PORT_TRIES} of {PORTS}")


class SluiceServer:
    """``sluice serve`` on ``data``; ``flags`` are further command line flags. A context manager.

    ``url`` is the registry's, ``operations_url`` that of health and metrics; ``log`` is the file with its stderr.
    """

    def __init__(self, data: Path, *flags: str, tls: bool = True, environment: dict[str, str] | None = None) -> None:
        self.data = data
        self.tls = tls
        self.flags: Sequence[str] = flags
        self.port = free_port()
        self.operations_port = free_port()
        self.log = data.parent / f"{data.name}.log"
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``scheme://127.0.0.1:port``."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def operations_url(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self.operations_port}"

    @property
    def ca(self) -> Path:
        """The CA that the server made for itself."""
        return self.data / "tls" / "ca.crt"

    @property
    def pid(self) -> int:
        """The running process."""
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        """What is executed."""
        return [
            sys.executable, "-m", "sluice", "serve", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}",
            "--operations-listen", f"127.0.0.1:{self.operations_port}", "--storage-reserve-bytes", "0",
            *([] if self.tls else ["--insecure-http"]), *self.flags,
        ]  # fmt: skip

    def start(self, prefix: Sequence[str] = ()) -> Self:
        """Start and wait until it is ready for writes. ``prefix`` goes before the command (strace, prlimit)."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command()], stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Return once ``/readyz`` says 200; raises AssertionError with the log where it does not come to that."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if self.operations("/readyz")[0] == 200:
                return
            time.sleep(0.02)
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()[-4000:]}")

    def operations(self, path: str) -> tuple[int, str]:
        """GET from the operations listener: (status, body); status 0 where nothing answers."""
        try:
            with urllib.request.urlopen(self.operations_url + path, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ssl_context(self) -> ssl.SSLContext:
        """A client context that trusts exactly this server."""
        return ssl.create_default_context(cafile=str(self.ca))

    def kill(self) -> None:
        """SIGKILL, now."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def resident_bytes(self, field: str = "VmRSS") -> int:
        """Memory of the process, from /proc (proc(5)): ``VmRSS`` now or ``VmHWM`` at its peak."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"/proc has no {field}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

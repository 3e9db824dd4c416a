"""Programs that hand out credentials, by the protocol of ``docker-credential-*``.

``get`` with the server's address on stdin; the answer is JSON on stdout with ``Username`` and ``Secret``. The program
runs in a session of its own, so that whatever it has started goes with it when it takes too long.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading

from sluice.errors import UpstreamUnauthorized
from sluice.upstream.docker_config import IDENTITY_TOKEN_USER, Credentials

PROGRAM_S = 10.0
PROGRAM_BYTES_MAX = 64 * 1024
_NOT_FOUND = b"credentials not found in native keychain"


def ask_program(program: str, server: str) -> Credentials | None:
    """Run it and wait: for a thread. None where it knows none; raises UpstreamUnauthorized where it cannot be asked."""
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise UpstreamUnauthorized(f"credential helper {program} cannot be run: {error.strerror}") from None
    watchdog = threading.Timer(PROGRAM_S, _kill, [process])
    watchdog.daemon = True
    watchdog.start()
    try:
        output = _talk(process, server)
    finally:
        watchdog.cancel()
        watchdog.join()
        _kill(process)  # what it left behind; itself it has ended, or written too much. Only now may its number be free
        code = process.wait()
    if len(output) > PROGRAM_BYTES_MAX:
        raise UpstreamUnauthorized(f"credential helper {program} writes more than {PROGRAM_BYTES_MAX} bytes")
    if code == -signal.SIGKILL:
        raise UpstreamUnauthorized(f"credential helper {program} took longer than {PROGRAM_S:g} s")
    if code != 0 and _NOT_FOUND in output:
        return None
    if code != 0:
        raise UpstreamUnauthorized(f"credential helper {program} failed with status {code} for {server}")
    return _parse(program, output)


def _talk(process: subprocess.Popen[bytes], server: str) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            process.stdin.write(server.encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it need not read what it is asked
        output = process.stdout.read(PROGRAM_BYTES_MAX + 1)
        if len(output) <= PROGRAM_BYTES_MAX:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _parse(program: str, output: bytes) -> Credentials | None:
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    name = answer.get("Username") if isinstance(answer, dict) else None
    secret = answer.get("Secret") if isinstance(answer, dict) else None
    if not isinstance(name, str) or not isinstance(secret, str):
        raise UpstreamUnauthorized(f"credential helper {program} answers with no JSON that has Username and Secret")
    if not name and not secret:
        return None
    return Credentials("" if name == IDENTITY_TOKEN_USER else name, secret, name == IDENTITY_TOKEN_USER)

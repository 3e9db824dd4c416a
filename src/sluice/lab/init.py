"""The first process of a laboratory, PID 1 of its PID namespace: a program that needs the standard library alone.

It does nothing, and that is what makes a laboratory impossible to leave behind: when it ends, for whatever reason, the
kernel ends every process of the namespace, and with the last of them go the mounts and the networks. Until it is told
to stay it watches the ``lab up`` that started it, so that one which is killed takes everything with it.
"""

from __future__ import annotations

import os
import signal
import sys

STAY = b"stay\n"
READY = b"ready\n"


def main() -> None:
    """Adopt and reap until the end. Standard input is a pipe from ``lab up``: ``STAY`` or its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps whatever is handed to us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(sys.stdout.fileno(), READY)
    if os.read(sys.stdin.fileno(), len(STAY)) != STAY:
        sys.exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, descriptor)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()

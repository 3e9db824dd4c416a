"""What the figures were measured on: processor, memory, disk, kernel, versions of everything that took part."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.site import ROOT

UNKNOWN = "unknown"


def describe() -> list[tuple[str, str]]:
    """Pairs of name and value, in the order to show them. Reading them fails for none: what is absent is unknown."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("memory", f"{memory_gib:.0f} GiB"),
        ("disk", _disk()),
        ("kernel", f"{platform.system()} {platform.release()}"),
        (
            "Sluice",
            f"{version('sluice')}, commit {_commit()}",
        ),
        ("Python", f"{platform.python_version()}, Granian {version('granian')}"),
        ("docker-registry", _first(["docker-registry", "--version"]).rpartition(" ")[2]),
        ("nginx", _first(["nginx", "-v"]).rpartition("/")[2]),
        ("etcd", _match(r"etcd Version: (\S+)", _output(["etcd", "--version"]))),
        ("wrk", _match(r"wrk (\S+)", _output(["wrk", "-v"]))),
        ("curl", _match(r"curl (\S+)", _output(["curl", "--version"]))),
        ("OpenSSL", ssl.OPENSSL_VERSION.removeprefix("OpenSSL ")),
    ]


def _commit() -> str:
    return _first(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])


def _processor() -> str:
    return _match(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())


def _disk() -> str:
    fields = _output(["df", "--output=source,fstype", str(ROOT)]).split()
    return f"{fields[-2]}, {fields[-1]}" if len(fields) >= 2 else UNKNOWN


def _first(command: Sequence[str]) -> str:
    lines = _output(command).strip().splitlines()
    return lines[0] if lines else UNKNOWN


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else UNKNOWN


def _output(command: Sequence[str]) -> str:
    try:
        # nginx and wrk tell their version on standard error, and wrk with a failing exit code.
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    except OSError:
        return ""

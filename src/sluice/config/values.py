"""How single values are written: sizes, durations, addresses, paths and lists.

The schema attaches these to its fields, so that a flag, an environment variable and a line of YAML are read by the same
code. A value that cannot be read raises ValueError, whose text is the part of the message after the key and the value:
what is wrong and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from sluice.config.shown import shown
from sluice.errors import NameInvalid
from sluice.oci.reference import parse_repository
from sluice.wire.address import read_upstream

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_SIZE_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024**4}
_SIZE_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DURATION_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value looks like, in one word; chooses the wording in flags and in the manual."""

    name: str


def read_line(value: object) -> str:
    """Text as it stands: what would have to be turned into text or trimmed is refused. Raises ValueError with the
    remedy."""
    if value is None:
        raise ValueError("is empty: write it, or leave out the key")
    if not isinstance(value, str):
        raise ValueError("is not text: put it in quotes")  # noqa: TRY004 - pydantic collects ValueError
    if value != value.strip() or _CONTROL.search(value):
        raise ValueError("has white space around it or control characters: leave them out")
    return value


def parse_size(value: object) -> int:
    """Read a number of bytes: ``4194304``, ``"4MiB"``, ``"1 GB"``. Units are KiB… (1024) and KB… (1000).

    Raises ValueError with the remedy.
    """
    found = re.fullmatch(r"(\d{1,18})\s*([A-Za-z]*)", str(value).strip()) if not isinstance(value, bool) else None
    if found is None or found[2].upper() not in _SIZE_UNITS:
        raise ValueError("is not a size: write a number of bytes, or 64KiB, 4MiB, 1GiB")
    return int(found[1]) * _SIZE_UNITS[found[2].upper()]


def parse_duration(value: object) -> float:
    """Read seconds: ``30``, ``"30s"``, ``"5m"``, ``"24h"``, ``"7d"``. Raises ValueError with the remedy."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", str(value).strip())
    if isinstance(value, bool) or found is None or found[2] not in _DURATION_UNITS:
        raise ValueError("is not a duration: write seconds, or 30s, 5m, 24h, 7d")
    return float(found[1]) * _DURATION_UNITS[found[2]]


def split_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[IPv6]:port`` into the bare host and the port (1-65535).

    Raises ValueError with the remedy.
    """
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", text)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise ValueError("is not an address: write host:port with a port from 1 to 65535, IPv6 as [::1]:5001")
    if found[1] is not None:
        try:
            ipaddress.IPv6Address(found[1])
        except ValueError:
            raise ValueError("has no IPv6 address in its brackets: write for example [::1]:5001") from None
    return found[1] or found[2], int(found[3])


def is_loopback(address: str) -> bool:
    """Whether a configured ``host:port`` can be reached from this machine only."""
    host = split_address(address)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(value: object) -> str:
    """Where to listen: one address of this machine, which a name might not be. Raises ValueError with the remedy."""
    text = str(value)
    host, _ = split_address(text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("has no IP address to listen on: write for example 127.0.0.1:5001 or [::1]:5001") from None
    return text


def _count(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is not a number: write a whole number")  # noqa: TRY004 - pydantic collects ValueError
    return value


def _path(value: object) -> object:
    if value == "" or (isinstance(value, str) and "\0" in value):
        raise ValueError("is not a path: name a file or directory")
    return read_line(value) if isinstance(value, str) else value


def _parts(value: object) -> object:
    """A list as it is, or from its parts between commas, which may have spaces around them."""
    return [part.strip(" ") for part in value.split(",") if part.strip(" ")] if isinstance(value, str) else value


def _names(value: object) -> object:
    names = _parts(value)
    if isinstance(names, list | tuple) and any(isinstance(name, str) and re.search(r"\s", name) for name in names):
        raise ValueError("has a name with white space: leave it out, and put commas between names")
    return names


def read_realm(value: object) -> object:
    """Let a URL pass that fits into a quoted string (RFC 9110 section 5.6.4). Raises ValueError with the remedy."""
    if value is not None and not re.fullmatch(r"https?://[^\s\"\\\x00-\x1f\x7f]+", str(value)):
        raise ValueError("is not a URL: write for example https://registry.example:5001/token")
    return value


def read_proxy(value: object) -> object:
    """Let the URL of a proxy pass. Raises ValueError with the remedy."""
    if value is not None and not re.fullmatch(r"(https?|socks5h?)://[!-.0-~]+/?", str(value)):
        raise ValueError("is not a proxy's URL: write for example http://proxy.example:3128 or socks5://127.0.0.1:1080")
    return value


def read_registry_name(value: object) -> str:
    """A registry's name as it stands in images, ``docker.io`` or ``registry.example:5000``, in lower case.

    Raises ValueError with the remedy.
    """
    name = read_line(value).lower()
    host, colon, port = name.partition(":")
    try:
        parse_repository(name.replace(":", "_"))
    except NameInvalid:
        host = ""
    if (
        not host
        or not str(value).isascii()
        or "/" in name
        or (colon and not (port.isdigit() and 1 <= int(port) <= 65535))
    ):
        raise ValueError(f"has {shown(name)}, which is no registry's name: write host or host:port, as in docker.io")
    return name


def _upstream(value: object) -> str:
    text = read_line(value)
    read_upstream(text)
    return text


def _upstreams(value: object) -> object:
    names = _parts(value)
    return [_upstream(name) for name in names] if isinstance(names, list | tuple) else names


Size = Annotated[int, BeforeValidator(parse_size), Kind("size")]
Seconds = Annotated[float, BeforeValidator(parse_duration), Kind("duration")]
WholeSeconds = Annotated[int, BeforeValidator(parse_duration), Kind("duration")]
Address = Annotated[str, BeforeValidator(_address), Kind("address")]
Count = Annotated[int, BeforeValidator(_count), Kind("count")]
FilePath = Annotated[Path, BeforeValidator(_path), Kind("path")]
Line = Annotated[str, BeforeValidator(read_line)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Kind("list")]
Upstream = Annotated[str, BeforeValidator(_upstream), Kind("upstream")]
Upstreams = Annotated[tuple[str, ...], BeforeValidator(_upstreams), Kind("list")]

"""Upstream addresses: where a remote registry is, and how our repository names become its. PURE.

``cli`` and the configuration parse what an operator wrote into one frozen ``UpstreamAddress``; ``upstream`` builds its
URLs from it and sees no text any more.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote

from sluice.errors import ConfigInvalid, NameInvalid
from sluice.oci.reference import NAME_LENGTH_MAX, Repository, parse_repository

ADDRESS_LENGTH_MAX = 1024
"""Characters of an address as written."""
PREFIX_LENGTH_MAX = 128
"""Characters of the path; it leaves half of a repository name's 255 to the names below it."""
HOST_LENGTH_MAX = 253
"""Characters of a host name (RFC 1035 section 2.3.4)."""
DEFAULT_PORTS = {"http": 80, "https": 443}

_EXAMPLE = "write [http://|https://]host[:port][/path], for example registry.example.com:5000/team/images"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """``scheme`` is ``http`` or ``https``; ``host`` is lower-case, IPv6 without brackets; ``prefix`` is a repository
    path without slashes at its ends, or empty."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """``host[:port]``, without the scheme's own port and with brackets round IPv6."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``scheme://host[:port]``."""
        return f"{self.scheme}://{self.authority}"

    def repository(self, name: Repository) -> Repository:
        """The upstream's name for our ``name``; raises NameInvalid where the two together are too long."""
        if not self.prefix:
            return name
        if len(self.prefix) + 1 + len(name) > NAME_LENGTH_MAX:
            raise NameInvalid(
                f"repository name {name!r} is too long for the upstream {self}: with its path it would have more than"
                f" {NAME_LENGTH_MAX} characters"
            )
        return Repository(f"{self.prefix}/{name}")

    def url(self, path: str) -> str:
        """The URL of an absolute ``path`` (plain text, without the prefix), escaped."""
        return self.origin + quote(path, safe="/:@!$&'()*+,;=~")

    def __str__(self) -> str:
        return f"{self.origin}/{self.prefix}" if self.prefix else self.origin


def parse_upstream(text: str, field: str = "upstream") -> UpstreamAddress:
    """Parse ``[http://|https://]host[:port][/path]``, HTTPS where no scheme is given.

    Raises ConfigInvalid, which names ``field``, the value and the remedy.
    """
    try:
        return read_upstream(text)
    except ValueError as error:
        raise ConfigInvalid(f"{field} is {_shown(text)}, which {error}") from None


def read_upstream(text: str) -> UpstreamAddress:
    """``parse_upstream`` for a caller that names the field and the value itself.

    Raises ValueError with the second half of the sentence: what is wrong with the value, and the remedy.
    """
    if len(text) > ADDRESS_LENGTH_MAX:
        raise ValueError(f"has more than {ADDRESS_LENGTH_MAX} characters: {_EXAMPLE}")
    if text != text.strip():
        raise ValueError("has white space around it: leave it out")
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else "https"
    if scheme not in DEFAULT_PORTS:
        raise ValueError(f"has the scheme {scheme[:20]!r}: use http:// or https://, or none for https://")
    rest = text[found.end() :] if found else text
    for mark, name in (("@", "a user name or an @"), ("?", "a query"), ("#", "a fragment"), ("\\", "a backslash")):
        if mark in rest:
            remedy = "give credentials in their own settings" if mark == "@" else _EXAMPLE
            raise ValueError(f"has {name}: {remedy}")
    authority, _, path = rest.partition("/")
    host, port = _split(authority)
    return UpstreamAddress(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, _prefix(path))


def without_user(text: str) -> str:
    """For messages: without what stands between the scheme and the last ``@``, which may be a password."""
    head, mark, tail = text.rpartition("@")
    scheme = _SCHEME.match(head)
    return f"{scheme[0] if scheme else ''}…@{tail}" if mark else text


def _split(authority: str) -> tuple[str, int | None]:
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("has brackets that do not hold an IPv6 address: write for example [2001:db8::1]:5000")
        return _ipv6(host), _port(port[1:]) if port else None
    host, colon, port = authority.partition(":")
    if ":" in port:
        raise ValueError("has more than one colon: write IPv6 in brackets, for example [2001:db8::1]:5000")
    return _host(host), _port(port) if colon else None


def _ipv6(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError("has no IPv6 address in its brackets: write for example [2001:db8::1]:5000") from None
    if address.scope_id is not None:
        raise ValueError("has a zone in its IPv6 address: give an address that needs none")
    return str(address)


def _host(text: str) -> str:
    host = text.lower()
    if not host:
        raise ValueError(f"names no host: {_EXAMPLE}")
    if len(host) > HOST_LENGTH_MAX or not text.isascii() or _HOST.fullmatch(host) is None:
        raise ValueError("has a host that is neither a DNS name nor an IP address (other scripts: as xn--…)")
    if host.rpartition(".")[2].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError("has a host that is not a valid IPv4 address: write four numbers from 0 to 255") from None
    return host


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or not 1 <= int(text) <= 65535:
        raise ValueError("has a port that is no number from 1 to 65535")
    return int(text)


def _prefix(path: str) -> str:
    prefix = path.removesuffix("/")
    if not prefix:
        if path:
            raise ValueError("has an empty part in its path: leave out the doubled slash")
        return ""
    if len(prefix) > PREFIX_LENGTH_MAX:
        raise ValueError(f"has a path of {len(prefix)} characters: at most {PREFIX_LENGTH_MAX} are allowed")
    if prefix == "v2" or prefix.startswith("v2/"):
        raise ValueError("has /v2 in its path: leave it out, the path is that of the repositories")
    try:
        return parse_repository(prefix)
    except NameInvalid:
        raise ValueError(
            "has a path that is none of repositories: lower-case letters, digits and single separators (. _ __ -)"
            " between single slashes are allowed"
        ) from None


def _shown(text: str) -> str:
    return ascii(without_user(text)[:160]).replace("\\u2026", "…")

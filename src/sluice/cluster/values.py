"""How single values of the cluster's documents are written.

The strings of a layout end in TOML, YAML, HAProxy's configuration and file names. Each has a type that admits only what
means the same in all of them: no quotes, no white space, no control characters, no ``..``. The serializers quote all
the same; a value that is refused here is refused with its name, before anything is rendered.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pydantic import BeforeValidator

from sluice.config.values import Kind, read_line, read_registry_name, split_address

NAME_LENGTH_MAX = 253  # RFC 1123 section 2.1; also of host:port, which becomes a directory's name of one more
PATH_LENGTH_MAX = 1024
PART_LENGTH_MAX = 200  # bytes; file systems take 255, and temporary files have longer names than what they become
SECRET_LENGTH_MAX = 4096  # characters of a user name or password
PEM_LENGTH_MAX = 256 << 10
CERTIFICATES_MAX = 64

_LABELS = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII)
# What containers/image takes for a registry's host (docker/reference): no IPv6 address, no underscore.
_IMAGE_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+", re.ASCII)
_IMAGE = re.compile(r"[a-z0-9]([A-Za-z0-9._/:@-]{0,510}[A-Za-z0-9])?", re.ASCII)


def read_node_name(value: object) -> str:
    """A DNS name in lower case. Raises ValueError with the remedy."""
    text = read_line(value)
    if len(text) > NAME_LENGTH_MAX or _LABELS.fullmatch(text) is None:
        raise ValueError("is no node's name: write a DNS name in lower case, for example worker-1")
    return text


def read_ip(value: object) -> str:
    """An IPv4 or IPv6 address that a peer can be reached at, in its usual form. Raises ValueError with the remedy."""
    text = read_line(value)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("is no IP address: write for example 10.0.0.11 or 2001:db8::11") from None
    if address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None) is not None:
        raise ValueError("is no address of one machine: write the node's own, for example 10.0.0.11")
    return str(address)


def read_virtual(value: object) -> str:
    """``host:port`` with a host that is a DNS name: what images are called by. Raises ValueError with the remedy."""
    text = read_line(value)
    host, _ = split_address(text)
    if len(text) > NAME_LENGTH_MAX:
        raise ValueError(f"has more than {NAME_LENGTH_MAX} characters: write for example registry.sluice.internal:5001")
    if _LABELS.fullmatch(host) is None or host.rpartition(".")[2].isdigit():
        raise ValueError("has no DNS name in lower case: write for example registry.sluice.internal:5001")
    return text


def can_name(runtime: str, host: str) -> bool:
    """Whether this runtime's files can have ``host`` (IPv6 without brackets) in a list of mirrors.

    The TOML parser of containerd 1.x ends a table's name at the first bracket, even a quoted one, and the whole file
    with it; CRI-O and podman take an image's reference, which cannot begin with such a host.
    """
    return ":" not in host if runtime == "containerd" else _IMAGE_HOST.fullmatch(host) is not None


def read_path(value: object) -> str:
    """An absolute path of plain characters. Raises ValueError with the remedy."""
    text = read_line(value)
    plain = len(text) <= PATH_LENGTH_MAX and _PATH.fullmatch(text) is not None
    parts = text.split("/")
    if not plain or {".", ".."} & set(parts):
        raise ValueError("is no path that can be used: write an absolute one of letters, digits and . _ @ + -")
    if max(map(len, parts)) > PART_LENGTH_MAX:
        raise ValueError(f"has a part of more than {PART_LENGTH_MAX} characters: write a shorter one")
    return text


def read_mirrored(value: object) -> str:
    """A registry's name as ``config`` reads it, short enough for a directory. Raises ValueError with the remedy."""
    name = read_registry_name(value)
    if len(name) > NAME_LENGTH_MAX:
        raise ValueError(f"has more than {NAME_LENGTH_MAX} characters: write host or host:port, as in docker.io")
    return name


def read_image(value: object) -> str:
    """An image's reference. Raises ValueError with the remedy."""
    text = read_line(value)
    if _IMAGE.fullmatch(text) is None or "//" in text or ".." in text:
        raise ValueError("is no image: write for example registry.sluice.internal:5001/sluice:1.0")
    return text


def read_certificates(value: object) -> str:
    """One or more certificates as PEM, written anew so that nothing else remains. Raises ValueError with the remedy."""
    if not isinstance(value, str) or len(value) > PEM_LENGTH_MAX:
        raise ValueError(f"is no PEM text of at most {PEM_LENGTH_MAX} characters")
    try:
        found = x509.load_pem_x509_certificates(value.encode())
    except ValueError:
        raise ValueError("holds no PEM certificate that can be read: write -----BEGIN CERTIFICATE----- …") from None
    if len(found) > CERTIFICATES_MAX:
        raise ValueError(f"holds {len(found)} certificates: at most {CERTIFICATES_MAX} are allowed")
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in found)


def read_key(value: object) -> str:
    """A private key as PEM without a password. Raises ValueError, which never shows it."""
    try:
        key = serialization.load_pem_private_key(str(value)[:PEM_LENGTH_MAX].encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("is no private key in PEM without a password") from None
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def is_pair(certificates: str, key: str) -> bool:
    """Whether ``key`` belongs to the first of ``certificates``; both as ``read_certificates`` and ``read_key`` gave."""
    public = x509.load_pem_x509_certificates(certificates.encode())[0].public_key()
    private = serialization.load_pem_private_key(key.encode(), None)
    kind, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(kind, form) == private.public_key().public_bytes(kind, form)


def read_secret(value: object) -> str:
    """A user name or password: any text of one line. Raises ValueError, which never shows it."""
    text = value if isinstance(value, str) else ""
    wrong = any(ord(mark) < 32 or ord(mark) == 127 or 0xD800 <= ord(mark) < 0xE000 for mark in text)
    if not text or len(text) > SECRET_LENGTH_MAX or wrong:
        raise ValueError(f"is no text of one line with up to {SECRET_LENGTH_MAX} characters")
    return text


NodeName = Annotated[str, BeforeValidator(read_node_name), Kind("DNS name")]
HostAddress = Annotated[str, BeforeValidator(read_ip), Kind("IP address")]
VirtualAddress = Annotated[str, BeforeValidator(read_virtual), Kind("host:port")]
RegistryName = Annotated[str, BeforeValidator(read_mirrored), Kind("host or host:port")]
NodePath = Annotated[str, BeforeValidator(read_path), Kind("absolute path")]
Image = Annotated[str, BeforeValidator(read_image), Kind("image")]
Certificates = Annotated[str, BeforeValidator(read_certificates), Kind("certificates as PEM")]
PrivateKey = Annotated[str, BeforeValidator(read_key), Kind("private key as PEM")]
Secret = Annotated[str, BeforeValidator(read_secret), Kind("text of one line")]

"""The configuration: every setting by every way in, who wins, and what is said about mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.config import LEAVES, Leaf, RegistryConfig, is_loopback, load_config, split_address
from sluice.config.load import CONFIG_FILE_BYTES
from sluice.config.remote import NamedUpstreamConfig
from sluice.config.values import parse_duration, parse_size
from sluice.errors import ConfigInvalid

SAMPLES = {
    "text": ("other", "other"),
    "path": ("/tmp/x", Path("/tmp/x")),
    "size": ("2MiB", 2 * 1024**2),
    "duration": ("2m", 120),
    "count": ("7", 7),
    "address": ("127.0.0.9:999", "127.0.0.9:999"),
    "list": ("a,b", ("a", "b")),
    "switch": ("true", True),
    "upstream": ("http://r.example:5000/team", "http://r.example:5000/team"),
    "registries": (
        "docker.io,r.example:5000=http://r.example:5000",
        {"docker.io": NamedUpstreamConfig(), "r.example:5000": NamedUpstreamConfig(address="http://r.example:5000")},
    ),
}
# What a setting needs beside it, and values that the samples do not fit.
BESIDE = {
    "nodes.listen": {"nodes.ca": "/ca"},
    "nodes.ca": {"nodes.listen": "127.0.0.1:9"},
    "peers.listen": {"peers.ca": "/ca"},
    "peers.ca": {"peers.listen": "127.0.0.1:9"},
    "operators.listen": {"operators.ca": "/ca"},
    "operators.ca": {"operators.listen": "127.0.0.1:9"},
    "tls.certificate": {"tls.key": "/k"},
    "tls.key": {"tls.certificate": "/c"},
    "mode": {"upstream.address": "r.example"},
    "upstream.user": {"upstream.password_file": "/p"},
    "upstream.password_file": {"upstream.user": "u"},
    "upstream.mirror_user": {"upstream.mirror_password_file": "/p"},
    "upstream.mirror_password_file": {"upstream.mirror_user": "u"},
    "upstream.client_certificate": {"upstream.client_key": "/k"},
    "upstream.client_key": {"upstream.client_certificate": "/c"},
}
SPECIAL = {
    "access.realm": ("https://r.example/token", "https://r.example/token"),
    "upstream.proxy": ("socks5://127.0.0.1:1080", "socks5://127.0.0.1:1080"),
}


def sample(leaf: Leaf) -> tuple[str, object]:
    """A value as a person writes it, and as the program has it."""
    if leaf.choices:
        return leaf.choices[-1], leaf.choices[-1]
    return SPECIAL.get(leaf.key, SAMPLES[leaf.kind])


def value_of(config: RegistryConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=lambda leaf: leaf.key)
@pytest.mark.parametrize("way", ["file", "variable", "flag"])
def test_every_setting_can_be_given_in_every_way(leaf: Leaf, way: str, tmp_path: Path) -> None:
    """A key in the file, its variable and its flag all set the same leaf."""
    written, meant = sample(leaf)
    flags: dict[str, object] = dict(BESIDE.get(leaf.key, {}))
    environ: dict[str, str] = {}
    file = None
    if way == "file":
        section, _, name = leaf.key.rpartition(".")
        file = tmp_path / "c.yaml"
        file.write_text(f"{section}:\n  {name}: {written}\n" if section else f"{name}: {written}\n")
    elif way == "variable":
        environ[leaf.variable] = written
    else:
        flags[leaf.key] = written
    assert value_of(load_config(file, environ, flags), leaf.key) == meant


@pytest.mark.parametrize(
    ("in_file", "in_environment", "as_flag", "expected"),
    [
        (None, None, None, 1000),
        (1, None, None, 1),
        (1, 2, None, 2),
        (1, 2, 3, 3),
        (1, None, 3, 3),
        (None, 2, None, 2),
    ],
)
def test_precedence(
    in_file: int | None, in_environment: int | None, as_flag: int | None, expected: int, tmp_path: Path
) -> None:
    """Flag over environment over file over default."""
    file = tmp_path / "c.yaml"
    file.write_text("" if in_file is None else f"limits: {{uploads: {in_file}}}")
    environ = {"SLUICE_CONFIG": str(file)}
    if in_environment is not None:
        environ["SLUICE_LIMITS_UPLOADS"] = str(in_environment)
    assert load_config(None, environ, {"limits.uploads": as_flag}).limits.uploads == expected


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (
            {"SLUICE_LIMITS_MANIFEST_BYTES": "4XiB"},
            {},
            "limits.manifest_bytes is '4XiB' (environment variable SLUICE_LIMITS_MANIFEST_BYTES):"
            " is not a size: write a number of bytes, or 64KiB, 4MiB, 1GiB",
        ),
        (
            {"SLUICE_LIMIT_UPLOADS": "3"},
            {},
            "environment variable SLUICE_LIMIT_UPLOADS is not a setting: did you mean SLUICE_LIMITS_UPLOADS?"
            " Rename or unset it",
        ),
        (
            {},
            {"log.level": "loud"},
            "log.level is 'loud' (flag --log-level): must be 'debug', 'info', 'warning' or 'error'",
        ),
        (
            {},
            {"limits.uploads": "many"},
            "limits.uploads is 'many' (flag --limits-uploads): is not a number: write a whole number",
        ),
        (
            {},
            {"gc.unlink_delay_s": "5s"},
            "gc.unlink_delay_s is '5s' (flag --gc-unlink-delay-s): must be greater than or equal to 60",
        ),
        (
            {},
            {"nodes.listen": "192.0.2.1:1"},
            "nodes.listen is '192.0.2.1:1' (flag --nodes-listen):"
            " needs ca beside it, the PEM file with the CA of the clients' certificates",
        ),
        (
            {},
            {"listen": "localhost:5001"},
            "listen is 'localhost:5001' (flag --listen): has no IP address to listen on:"
            " write for example 127.0.0.1:5001 or [::1]:5001",
        ),
        (
            {},
            {"peers.ca": "/ca"},
            "peers.ca is '/ca' (flag --peers-ca): has no effect without listen: set both or neither",
        ),
        (
            {},
            {"insecure_http": True, "peers.ca": "/ca", "peers.listen": "192.0.2.1:1"},
            "insecure_http is True (flag --insecure-http): excludes peers.listen, which needs TLS: remove one",
        ),
        (
            {},
            {"nodes.ca": "/n", "nodes.listen": "192.0.2.1:1", "peers.ca": "/ca", "peers.listen": "192.0.2.1:1"},
            "peers.listen is '192.0.2.1:1' (flag --peers-listen): is the address of nodes.listen already:"
            " choose another port",
        ),
        (
            {},
            {"tls.key": "/k"},
            "tls.key is '/k' (flag --tls-key): needs tls.certificate beside it: set both or neither",
        ),
        (
            {},
            {"tls.key": "/k", "tls.certificate": "/c", "tls.names": "a"},
            "tls.names is 'a' (flag --tls-names): has no effect on a given tls.certificate: remove one of the two",
        ),
        (
            {"SLUICE_INSECURE_HTTP": "yes"},
            {"tls.names": "a"},
            "insecure_http is 'yes' (environment variable SLUICE_INSECURE_HTTP):"
            " excludes tls.certificate, tls.key and tls.names: remove one or the other",
        ),
        (
            {},
            {"listen": "127.0.0.1:5002"},
            "operations_listen is '127.0.0.1:5002' (default): is the address of listen already: choose another port",
        ),
        (
            {},
            {"mode": "proxy"},
            "mode is 'proxy' (flag --mode): needs upstream.address, the registry to ask: set it, or use mode local",
        ),
        (
            {},
            {"upstream.docker_config": "/c", "upstream.credential_program": "p"},
            "upstream.credential_program is 'p' (flag --upstream-credential-program): excludes docker_config: choose"
            " one way to give credentials",
        ),
        ({}, {"data": "a\0b"}, r"data is 'a\x00b' (flag --data): is not a path: name a file or directory"),
        (
            {},
            {"access.realm": 'https://x"y'},
            "access.realm is 'https://x\"y' (flag --access-realm):"
            " is not a URL: write for example https://registry.example:5001/token",
        ),
    ],
)
def test_mistakes_are_explained(environ: dict[str, str], flags: dict[str, object], message: str) -> None:
    """A wrong value is reported with key, value, source and remedy."""
    with pytest.raises(ConfigInvalid) as caught:
        load_config(None, environ, flags)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"limts:\n  uploads: 3", "limts is not a known key (file {file}): did you mean limits?"),
        (b"manifest_bytes: 3", "manifest_bytes is not a known key (file {file}): did you mean limits.manifest_bytes?"),
        (b"zzzzzz: 3", "zzzzzz is not a known key (file {file}): see docs/configuration.md for the keys there are"),
        (b"limits: 5", "limits is 5 (file {file}): write a mapping of keys to values"),
        (b"- a", "the document is none (file {file}): write a mapping of keys to values"),
        (
            b"limits: {uploads: true}",
            "limits.uploads is True (file {file}): is not a number: write a whole number",
        ),
        (
            b"listen: {a: 1}",
            "listen is {{'a': …}} (file {file}): is not an address:"
            " write host:port with a port from 1 to 65535, IPv6 as [::1]:5001",
        ),
        (
            b"registries: {docker.io: {user: x}}",
            "registries.docker.io.user is 'x' (file {file}): needs password_file beside it: set both or neither",
        ),
        (
            b"registries: {docker.io: {addres: x}}",
            "registries.docker.io.addres is not a known key (file {file}): see docs/configuration.md for the keys there"
            " are",
        ),
        (
            b"registries: {a/b: x}",
            "registries is {{'a/b': …}} (file {file}): has 'a/b', which is no registry's name: write host or"
            " host:port, as in docker.io",
        ),
        (
            b"upstream: http://robot:secret@r.example",
            "upstream.address is 'http://…@r.example' (file {file}): has a user name or an @: give credentials in"
            " their own settings",
        ),
        (b"tls: {names: [1]}", "tls.names is [1] (file {file}): is not text: put it in quotes"),
    ],
)
def test_mistakes_in_a_file_are_explained(text: bytes, message: str, tmp_path: Path) -> None:
    """What is wrong in a file names the file, and an unknown key the nearest one."""
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(file, {}, {})
    assert caught.value.message == message.format(file=file)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe\xff",
        b"? [a]\n: b",
        b"listen: a:1\nlisten: b:1",
        b"[" * 5000,
        b"#" * (CONFIG_FILE_BYTES + 1),
        None,
    ],
    ids=["cut", "bytes", "list as key", "twice", "deep", "large", "absent"],
)
def test_an_unreadable_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    """Whatever the file holds, or if it is not there, the error is ours and names it."""
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=rf"^config file {file} "):
        load_config(file, {}, {})


def test_empty_variables_and_service_links_are_no_settings() -> None:
    """What is empty counts as unset, and Kubernetes' variables about a Service called sluice are left alone."""
    environ = {
        "SLUICE_LISTEN": "",
        "SLUICE_PORT": "tcp://10.0.0.1:5001",
        "SLUICE_PORT_5001_TCP_ADDR": "10.0.0.1",
        "SLUICE_SERVICE_HOST": "10.0.0.1",
        "OTHER": "x",
    }
    assert load_config(None, environ, {}) == RegistryConfig()


@given(st.integers(0, 10**9), st.sampled_from([("", 1), ("B", 1), ("KiB", 1024), ("MiB", 1024**2), (" GB", 10**9)]))
def test_sizes(number: int, unit: tuple[str, int]) -> None:
    """A size is its number times its unit, in either case."""
    assert [parse_size(f"{number}{unit[0]}"), parse_size(f"{number}{unit[0].lower()}")] == [number * unit[1]] * 2


@given(st.integers(0, 10**6), st.sampled_from([("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_durations(number: int, unit: tuple[str, int]) -> None:
    """A duration is its number times its unit, in seconds."""
    assert parse_duration(f"{number}{unit[0]}") == number * unit[1]


@given(st.text() | st.booleans() | st.none() | st.lists(st.integers()) | st.floats())
def test_reading_values_raises_nothing_else(value: object) -> None:
    """Whatever is given, a value is read or refused with ValueError, which the loader explains."""
    said = [refusal(read, value) for read in (parse_size, parse_duration, lambda given: split_address(str(given)))]
    assert [words for words in said if words is not None and not words.startswith(("is not", "has no"))] == []


def refusal(read: Callable[[object], object], value: object) -> str | None:
    """What is said against a value; None if it is taken."""
    try:
        read(value)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("address", "parts", "loopback"),
    [
        ("127.0.0.1:5001", ("127.0.0.1", 5001), True),
        ("[::1]:1", ("::1", 1), True),
        ("localhost:65535", ("localhost", 65535), True),
        ("0.0.0.0:80", ("0.0.0.0", 80), False),
        ("[::]:80", ("::", 80), False),
        ("registry.example:443", ("registry.example", 443), False),
    ],
)
def test_addresses(address: str, parts: tuple[str, int], loopback: bool) -> None:
    """An address splits into host and port, and tells whether only this machine can reach it."""
    assert (split_address(address), is_loopback(address)) == (parts, loopback)


@pytest.mark.parametrize(
    "address", ["", "a", "a:", ":1", "a:0", "a:65536", "::1:5", "[::1]", "[zz]:1", "[1.2]:1", "a:1 ", "a:1\n"]
)
def test_bad_addresses(address: str) -> None:
    """What is not host:port with a usable port is refused."""
    with pytest.raises(ValueError, match=r"^(is not an address|has no IPv6)"):
        split_address(address)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("upstream: {address: true}", "upstream.address is True (file {file}): is not text: put it in quotes"),
        ('upstream: "r.example\\n"', r"upstream.address is 'r.example\n' (file {file}): has white space around it or"),
        ('upstream: {mirrors: ["a ", b]}', "upstream.mirrors is ['a ', 'b'] (file {file}): has white space around it"),
        ("upstream: {mirrors: [1.5]}", "upstream.mirrors is [1.5] (file {file}): is not text: put it in quotes"),
        ('upstream: {user: "a\\r"}', r"upstream.user is 'a\r' (file {file}): has white space around it or control"),
        ("upstream: {user: 1.5}", "upstream.user is 1.5 (file {file}): is not text: put it in quotes"),
        ('upstream: {credential_program: "p\\n"}', r"upstream.credential_program is 'p\n' (file {file}): has white sp"),
        ('upstream: {proxy: "http://a\\u2100"}', r"upstream.proxy is 'http://a\u2100' (file {file}): is not a proxy's"),
        ('upstream: {no_proxy: ["a\\n"]}', r"upstream.no_proxy is ['a\n'] (file {file}): has a name with white space"),
        ("tls: {names: a b}", "tls.names is 'a b' (file {file}): has a name with white space: leave it out, and put"),
        ('data: "/d\\n"', r"data is '/d\n' (file {file}): has white space around it or control characters: leave them"),
        ("data: 1.5", "data is 1.5 (file {file}): "),
        ('access: {service: "a\\u0001"}', r"access.service is 'a\x01' (file {file}): has characters that break a head"),
        ('access: {realm: "https://a\\u0001"}', r"access.realm is 'https://a\x01' (file {file}): is not a URL"),
        ("registries: {1.5: x}", "registries is {{1.5: …}} (file {file}): is not text: put it in quotes"),
        ("registries: {null: x}", "registries is {{None: …}} (file {file}): is empty: write it"),
        ('registries: {"a\\n": x}', r"registries is {{'a\n': …}} (file {file}): has white space around it or control"),
        ('registries: {"\\u212a.example": x}', r"registries is {{'\u212a.example': …}} (file {file}): has '"),
    ],
)
def test_text_is_taken_as_it_stands_or_refused(text: str, message: str, tmp_path: Path) -> None:
    """Nothing is turned into text and nothing is taken off."""
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(file, {}, {})
    expected = message.format(file=file)
    assert expected == caught.value.message[: len(expected)]

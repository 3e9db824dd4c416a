"""A wrong configuration of upstreams is refused on start: which setting, which value, what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice.cli.app import run

ADDRESS = "registry.example.com"
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no upstream": ([], ["needs upstream.address", "set it"]),
    "another scheme": (["--upstream", "ftp://r.test"], ["upstream", "'ftp://r.test'", "use http:// or https://"]),
    "no host": (["--upstream", "https://"], ["names no host", "for example"]),
    "no port": (["--upstream", "r.test:"], ["'r.test:'", "1 to 65535"]),
    "port 0": (["--upstream", "r.test:0"], ["'r.test:0'", "1 to 65535"]),
    "port 65536": (["--upstream", "r.test:65536"], ["'r.test:65536'", "1 to 65535"]),
    "port of letters": (["--upstream", "r.test:https"], ["'r.test:https'", "1 to 65535"]),
    "path upwards": (["--upstream", "r.test/../secret"], ["'r.test/../secret'", "lower-case letters"]),
    "path in capitals": (["--upstream", "r.test/Team"], ["'r.test/Team'", "lower-case letters"]),
    "double slash": (["--upstream", "r.test//team"], ["'r.test//team'", "path"]),
    "path of the API": (["--upstream", "r.test/v2/team"], ["'r.test/v2/team'", "leave it out"]),
    "query": (["--upstream", "r.test?ns=docker.io"], ["a query"]),
    "wrong IPv4": (["--upstream", "10.0.0.256"], ["'10.0.0.256'", "0 to 255"]),
    "bare IPv6": (["--upstream", "2001:db8::1"], ["in brackets"]),
    "no CA file": (
        ["--upstream", ADDRESS, "--upstream-ca", "/nonexistent/ca.crt"],
        ["upstream.ca is /nonexistent/ca.crt", "name a file"],
    ),
    "a name for an address": (["--upstream", "docker.io"], ["upstream.address is docker.io", "registry-1.docker.io"]),
    "no password file": (["--upstream", ADDRESS, "--upstream-user", "u"], ["upstream.user", "password_file"]),
    "negative ttl": (["--upstream", ADDRESS, "--cache-ttl-s", "-1"], ["cache.ttl_s", "'-1'", "write seconds"]),
    "ttl in years": (["--upstream", ADDRESS, "--cache-ttl-s", "1y"], ["cache.ttl_s", "'1y'", "write seconds"]),
    "size": (["--upstream", ADDRESS, "--cache-max-bytes", "much"], ["cache.max_bytes", "'much'", "write a number"]),
    "no time": (["--upstream", ADDRESS, "--upstream-head-s", "0"], ["upstream.head_s", "'0'"]),
    "mirror": (["--upstream", ADDRESS, "--upstream-mirrors", "r.test:x"], ["upstream.mirrors", "1 to 65535"]),
    "registry": (["--upstream", ADDRESS, "--registries", "docker.io=r.test:x"], ["registries", "1 to 65535"]),
    "registry twice": (["--upstream", ADDRESS, "--registries", "a.test:1", "--registries", "a.test_1"], ["registries"]),
    "registry's name": (["--upstream", ADDRESS, "--registries", "a/b"], ["registries", "'a/b'", "write host"]),
    "mode": (["--mode", "mirror", "--upstream", ADDRESS], ["mode", "'mirror'", "proxy"]),
    "proxy": (["--upstream", ADDRESS, "--upstream-proxy", "127.0.0.1:3128"], ["upstream.proxy", "write for example"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """Exit code 2 and one line on stderr."""
    flags, words = REFUSED[case]
    assert 2 == run(["serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:1", "--mode", "proxy", *flags])
    said = capsys.readouterr().err
    assert [] == [word for word in words if word not in said], said
    assert 1 == said.count("\n"), said


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy is, the password is not."""
    data = str(tmp_path / "data")
    assert 2 == run(["serve", "--data", data, "--mode", "proxy", "--upstream", "https://user:hunter2@r.test"])
    said = capsys.readouterr().err
    assert "credentials in their own settings" in said
    assert "hunter2" not in said


def test_files_that_are_not_what_they_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CA file without a certificate is refused with its name."""
    wrong = tmp_path / "ca.crt"
    wrong.write_text("no certificate")
    flags = ["--upstream", ADDRESS, "--upstream-ca", str(wrong)]
    assert 2 == run(["serve", "--data", str(tmp_path / "data"), "--insecure-http", "--mode", "proxy", *flags])
    assert f"upstream.ca is {wrong}, which holds no certificate in PEM format" in capsys.readouterr().err

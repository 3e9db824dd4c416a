"""Mistakes in the server's configuration are explained without the passwords that somebody wrote there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice.config import load_config
from sluice.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"upstream:\n  password: hunter2: x", "config file {file} is not YAML: mapping values are not allowed here"),
        (b"hunter2", "the document is none (file {file}): write a mapping"),
        (b"upstream: {password: hunter2}", "upstream.password is not a known key (file {file})"),
        (b"upstream: {'https://bob:hunter2@r.example': }", "upstream.https://…@r.example is not a known key (file"),
        (
            b"upstream: https://bob:hun/ter @hunter2@r.example",
            "upstream.address is 'https://…@r.example' (file {file})",
        ),
        (b"upstream: {mirrors: [a.example, 'bob:hunter2@r.example']}", "upstream.mirrors is ['a.example', '…@r.exam"),
        (b"upstream: {proxy: 'ftp://bob:hunter2@r.example'}", "upstream.proxy is 'ftp://…@r.example' (file {file})"),
        (b"access: {realm: 'ftp://bob:hunter2@r.example'}", "access.realm is 'ftp://…@r.example' (file {file})"),
        (b"registries: {docker.io: {password: hunter2}}", "registries.docker.io.password is not a known key (file"),
        (b"registries: {docker.io: {password: hunter2}, a/b: x}", "registries is {{'docker.io': …, 'a/b': …}} (file"),
        (b"registries: {'bob:hunter2@r.example': x}", "registries is {{'…@r.example': …}} (file {file}): has '…@r.ex"),
        (b"listen: {password: hunter2}", "listen is {{'password': …}} (file {file})"),
    ],
)
def test_mistakes_are_explained_without_a_password(text: bytes, message: str, tmp_path: Path) -> None:
    """The file is no place for one, and people write one there all the same."""
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_config(file, {}, {})
    expected = message.format(file=file)
    assert expected == caught.value.message[: len(expected)]
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"upstream.address": "https://bob:hun,ter2@r.example"}, "upstream.address is 'https://…@r.example' (flag"),
        ({"upstream.mirrors": "a.example,https://bob:hun,ter2@r.example"}, "upstream.mirrors is '…@r.example' (flag"),
        ({"registries": "docker.io=https://bob:hunter2@r.example"}, "registries.docker.io.address is 'https://…@r.exa"),
    ],
)
def test_flags_are_explained_without_a_password(flags: dict[str, object], message: str) -> None:
    """Whatever stands before the last @ may be one."""
    with pytest.raises(ConfigInvalid) as caught:
        load_config(None, {}, flags)
    assert message == caught.value.message[: len(message)]
    assert "ter2" not in caught.value.message

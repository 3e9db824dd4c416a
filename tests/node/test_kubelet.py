"""The kubelet's configuration and the program that it runs, asked as the kubelet asks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from node.given import LOGIN, node_layout, node_secrets, paths_below
from node.layouts import layouts
from sluice.cluster.layout import NodeLayout
from sluice.node import credential_provider
from sluice.node.kubelet import PROGRAM, PROTOCOL_VERSION, render_kubelet
from sluice.node.secret_files import render_secrets, upstream_path

IMAGE = "registry.sluice.internal:5001/team/app"
REQUEST = {"kind": "CredentialProviderRequest", "apiVersion": PROTOCOL_VERSION, "image": IMAGE}
EMPTY: dict[str, Any] = {
    "kind": "CredentialProviderResponse",
    "apiVersion": PROTOCOL_VERSION,
    "cacheKeyType": "Registry",
    "cacheDuration": "0s",
    "auth": {},
}


def ask(request: object, *arguments: str) -> tuple[int, str, str]:
    """Run the program as the kubelet does: exit code, standard output, standard error."""
    raw = request if isinstance(request, bytes) else json.dumps(request).encode()
    command = [sys.executable, "-m", credential_provider.__name__, *arguments]
    done = subprocess.run(command, input=raw, capture_output=True, check=False, timeout=60, env={"PATH": "/usr/bin"})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def login(tmp_path: Path) -> str:
    """The file that an apply writes in Direct mode; its path."""
    upstream = {"address": "https://up.example/team"}
    layout = node_layout(sources=["upstream", "replicas"], upstream=upstream, paths=paths_below(tmp_path))
    path = Path(upstream_path(layout))
    path.parent.mkdir(parents=True)
    path.write_bytes(render_secrets(layout, node_secrets(login=True))[str(path)].content)
    return str(path)


@given(layouts())
def test_the_kubelet_is_told_of_the_program(layout: NodeLayout) -> None:
    """In every mode alike, since it reads this only at its start: for the virtual address, nothing kept."""
    files = render_kubelet(layout)
    if layout.mode == "unmanaged" or set(layout.runtimes) == {"podman"}:
        assert {} == files
        return
    provider = {
        "name": PROGRAM,
        "apiVersion": PROTOCOL_VERSION,
        "matchImages": [layout.virtual],
        "defaultCacheDuration": "0s",
        "args": [upstream_path(layout)],
    }
    assert [layout.paths.kubelet_credentials] == list(files)
    assert {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [provider],
    } == yaml.safe_load(files[layout.paths.kubelet_credentials].content)


def test_the_login_is_handed_out(login: str) -> None:
    """For an image of the virtual address, by tag or digest; a request of a later kubelet has more members."""
    auth = {"registry.sluice.internal:5001": {"username": LOGIN.user, "password": LOGIN.password}}
    request = REQUEST | {"serviceAccountToken": "x", "serviceAccountAnnotations": {"a": "b"}}
    code, said, story = ask(request, login)
    assert (0, EMPTY | {"auth": auth}, "") == (code, json.loads(said), story)


@pytest.mark.parametrize(
    "image",
    ["docker.io/library/busybox", "registry.sluice.internal/app", "registry.sluice.internal:5001.evil.example/a", "a"],
)
def test_other_images_get_nothing(login: str, image: str) -> None:
    """The login is the upstream's and no other registry's."""
    assert (0, EMPTY) == outcome(ask(REQUEST | {"image": image}, login))


def test_without_a_login_there_is_an_answer(tmp_path: Path) -> None:
    """No file: every mode but Direct, and an anonymous upstream."""
    assert (0, EMPTY) == outcome(ask(REQUEST, str(tmp_path / "none.json")))


def outcome(found: tuple[int, str, str]) -> tuple[int, Any]:
    assert "" == found[2]
    return found[0], json.loads(found[1])


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (b"", "the request is no JSON"),
        (b"[" * 100_000, "the request is no JSON"),
        (b"\xff\xfe", "the request is no JSON"),
        (b" " * (1 << 21), "the request has more than 1048576 bytes"),
        ([], "the request is no JSON object"),
        (REQUEST | {"apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1"}, "the request's apiVersion is 'cred"),
        (REQUEST | {"kind": "x" * 5000}, "the request's kind is 'xxx"),
        (REQUEST | {"kind": {"secret": 1}}, "the request's kind is {"),
        ({key: REQUEST[key] for key in ("kind", "apiVersion")}, "the request names no image"),
        (REQUEST | {"image": 5}, "the request names no image"),
        (REQUEST | {"image": ""}, "the request names no image"),
    ],
)
def test_a_bad_request_is_a_sentence(login: str, request_: object, complaint: str) -> None:
    """Exit code 1, one line on standard error, nothing on standard output."""
    code, said, story = ask(request_, login)
    assert (1, "", 1) == (code, said, story.count("\n"))
    assert story.startswith(f"sluice-credential-provider: {complaint}")
    assert len(story) < 300


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is no JSON"),
        ('{"virtual": "registry.sluice.internal:5001", "user": "hidden"', "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"virtual": "registry.sluice.internal:5001", "user": "hidden"}', "has no password: run sluice node apply"),
        ('{"virtual": 1, "user": "", "password": "hidden"}', "has no virtual, user: run sluice node apply"),
        (" " * (1 << 21), "has more than 1048576 bytes"),
    ],
)
def test_a_bad_login_file_is_a_sentence(login: str, content: str, complaint: str) -> None:
    """The file is named; what stands in it is not shown."""
    Path(login).write_text(content)
    code, said, story = ask(REQUEST, login)
    assert (1, "", f"sluice-credential-provider: {login} {complaint}\n") == (code, said, story)


@pytest.mark.parametrize("name", [".", "/proc/self/mem"])
def test_an_unreadable_login_file_is_a_sentence(name: str) -> None:
    """A directory, or a file that gives an error in the middle of reading."""
    code, said, story = ask(REQUEST, name)
    assert (1, "", True) == (code, said, story.startswith(f"sluice-credential-provider: {name} cannot be read: "))


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("a", "b"), 2), (("--secrets",), 2), (("--help",), 0)])
def test_usage(arguments: tuple[str, ...], code: int) -> None:
    """How to call it, on standard error where it was called wrongly."""
    found = ask(REQUEST, *arguments)
    assert (code, credential_provider.USAGE) == (found[0], (found[1] + found[2]).strip())


def test_a_reader_that_has_left_gets_no_traceback(login: str) -> None:
    """The kubelet may have given up waiting."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", credential_provider.__name__, login]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            command, input=json.dumps(REQUEST).encode(), stdout=gone, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert (1, b"sluice-credential-provider: cannot answer: Broken pipe\n") == (done.returncode, done.stderr)


def test_the_program_is_installed_by_its_name(login: str) -> None:
    """The kubelet runs a file with exactly the configured name; it starts without what the registry needs."""
    program = Path(sys.executable).with_name(PROGRAM)
    done = subprocess.run([program, login], input=json.dumps(REQUEST).encode(), capture_output=True, check=True)
    assert json.loads(done.stdout)["auth"]
    code = "import sys, sluice.node.credential_provider; print({'pydantic', 'cryptography'} & set(sys.modules))"
    assert b"set()\n" == subprocess.check_output([sys.executable, "-c", code])

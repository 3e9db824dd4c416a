"""Registries of another make to stand before: Debian's ``docker-registry`` in its guises, and Sluice with tokens."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import bcrypt

from integration.callers import USERS, with_users
from sluice.pki.authority import open_authority
from sluice.pki.leaf import issue_server, parse_names
from sluice.testing.server import SluiceServer, free_port

GUISES = ("plain", "htpasswd", "tls", "token")
NAME, PASSWORD = "robot", "secret"
START_S = 30.0


@dataclass(frozen=True, slots=True)
class Foreign:
    """A running registry: ``flags`` are those of a Sluice before it, ``skopeo`` those of a copy into it."""

    url: str
    flags: Sequence[str]
    skopeo: Sequence[str]
    stop: Callable[[], object]

    @property
    def host(self) -> str:
        """``127.0.0.1:port``."""
        return self.url.partition("://")[2]


@contextmanager
def foreign_registry(guise: str, directory: Path) -> Iterator[Foreign]:
    """Run one in ``directory``, in one of ``GUISES``."""
    directory.mkdir(mode=0o700)
    (directory / "password").write_text(f"{PASSWORD}\n")
    if guise == "token":
        with _sluice(directory) as found:
            yield found
    else:
        with _docker_registry(guise, directory) as found:
            yield found


@contextmanager
def _sluice(directory: Path) -> Iterator[Foreign]:
    with SluiceServer(with_users(directory / "data", USERS)) as server:
        (directory / "certs").mkdir()
        (directory / "certs" / "ca.crt").write_bytes(server.ca.read_bytes())
        flags = ["--upstream-ca", str(server.ca), "--upstream-user", "reader"]
        flags += ["--upstream-password-file", str(directory / "password")]
        skopeo = ["--dest-cert-dir", str(directory / "certs"), "--dest-creds", f"writer:{PASSWORD}"]
        yield Foreign(server.url, ["--upstream", server.url, *flags], skopeo, server.stop)


@contextmanager
def _docker_registry(guise: str, directory: Path) -> Iterator[Foreign]:
    port = free_port()
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    document: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": http,
    }
    url, flags, skopeo = f"http://127.0.0.1:{port}", [], ["--dest-tls-verify=false"]
    ca = None
    if guise == "htpasswd":
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, b"2a"))
        (directory / "htpasswd").write_bytes(NAME.encode() + b":" + hashed + b"\n")
        document["auth"] = {"htpasswd": {"realm": "here", "path": str(directory / "htpasswd")}}
        flags = ["--upstream-user", NAME, "--upstream-password-file", str(directory / "password")]
        skopeo += ["--dest-creds", f"{NAME}:{PASSWORD}"]
    if guise == "tls":
        now = datetime.now(UTC)
        authority = open_authority(directory, "ca", "Test CA", now)
        leaf = issue_server(authority, parse_names(["127.0.0.1"]), now)
        (directory / "crt").write_bytes(leaf.chain_pem)
        (directory / "key").write_bytes(leaf.key_pem)
        http["tls"] = {"certificate": str(directory / "crt"), "key": str(directory / "key")}
        (directory / "certs").mkdir()
        (directory / "certs" / "ca.crt").write_bytes(authority.path.read_bytes())
        ca = authority.path
        url, flags = f"https://127.0.0.1:{port}", ["--upstream-ca", str(ca)]
        skopeo = ["--dest-cert-dir", str(directory / "certs")]
    (directory / "config.yml").write_text(json.dumps(document))
    log = directory / "log"
    with log.open("wb") as output:
        command = ["docker-registry", "serve", str(directory / "config.yml")]
        process = subprocess.Popen(command, stdout=output, stderr=output)

    def stop() -> None:
        process.kill()
        process.wait()

    try:
        _wait_for(process, url, ca, log)
        yield Foreign(url, ["--upstream", url, *flags], skopeo, stop)
    finally:
        stop()


def _wait_for(process: subprocess.Popen[bytes], url: str, ca: Path | None, log: Path) -> None:
    context = None if ca is None else ssl.create_default_context(cafile=str(ca))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/v2/", timeout=5, context=context).close()
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"docker-registry did not start:\n{log.read_text()[-2000:]}")

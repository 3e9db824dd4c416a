"""A small registry client that does exactly what it is told, for tests that need to misbehave precisely.

Built on ``http.client``: one connection, no redirects, no retries, every header as given.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sluice.testing.server import SluiceServer

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCTETS = "application/octet-stream"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """``sha256:…`` of ``data``."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        """The spec's error codes in the body."""
        return [error["code"] for error in self.json["errors"]]


class RegistryClient:
    """Speaks to one server over one connection that is reopened when it has been closed."""

    def __init__(self, server: SluiceServer, authorization: str | None = None, timeout_s: float = 60.0) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self.authorization = authorization
        self._connection: http.client.HTTPConnection | None = None

    def connect(self) -> http.client.HTTPConnection:
        """A new connection of one's own to do anything with."""
        if self._server.tls:
            context = self._server.ssl_context()
            return http.client.HTTPSConnection("127.0.0.1", self._server.port, timeout=self._timeout_s, context=context)
        return http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=self._timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; a connection that the server has closed in between is opened again once."""
        sent = {**({"Authorization": self.authorization} if self.authorization else {}), **(headers or {})}
        if self._connection is None:
            self._connection = self.connect()
        try:
            return self._exchange(method, path, body, sent)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.close()
            if body is not None and not isinstance(body, bytes):
                raise
            self._connection = self.connect()
            return self._exchange(method, path, body, sent)

    def _exchange(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None, headers: Mapping[str, str]
    ) -> Answer:
        assert self._connection is not None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # an early refusal: its answer is there
                self._connection.request(method, path, body, dict(headers))
            response = self._connection.getresponse()
            data = response.read()
        except BaseException:
            self.close()
            raise
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return Answer(response.status, found, data)

    def raw(self, data: bytes) -> Answer:
        """Send octets as they are over a connection of their own and read one response, an interim one included.

        For requests that no HTTP library would form. HEAD is understood; the request line's method decides.
        """
        connection = self.connect()
        connection.connect()
        with connection.sock as sock:
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # an early refusal closes while we still send
                sock.sendall(data)
            response = http.client.HTTPResponse(sock, method=data.split(b" ", 1)[0].decode("latin-1"))
            with response:
                response.begin()
                found = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, found, response.read())

    def raw_path(self, method: str, path: bytes, body: bytes = b"", *headers: bytes) -> Answer:
        """One request whose path are these octets, however wrong."""
        lines = [b"%s %s HTTP/1.1" % (method.encode(), path), b"Host: 127.0.0.1", b"Connection: close", *headers]
        length = b"Content-Length: %d" % len(body)
        return self.raw(b"\r\n".join([*lines, length, b"", body]))

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def start_upload(self, repository: str) -> str:
        """POST a session; its path."""
        answer = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, (answer.status, answer.body)
        return urlsplit(answer.headers["location"]).path

    def push_blob(self, repository: str, data: bytes) -> str:
        """POST and PUT; the digest. Asserts success."""
        digest = digest_of(data)
        path = self.start_upload(repository)
        answer = self.request("PUT", f"{path}?digest={digest}", data, {"Content-Type": OCTETS})
        assert answer.status == 201, (answer.status, answer.body)
        return digest

    def push_manifest(self, repository: str, reference: str, manifest: object, media_type: str = OCI_MANIFEST) -> str:
        """PUT; the digest. Asserts success."""
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        answer = self.request("PUT", f"/v2/{repository}/manifests/{reference}", raw, {"Content-Type": media_type})
        assert answer.status == 201, (answer.status, answer.body)
        return answer.headers["docker-content-digest"]

    def push_image(self, repository: str, tag: str, layers: Iterable[bytes] = (b"layer",)) -> str:
        """A whole small image; the manifest's digest."""
        return self.push_manifest(repository, tag, self.image(repository, layers))

    def image(self, repository: str, layers: Iterable[bytes], **more: object) -> dict[str, object]:
        """Push the blobs of an image and return its manifest, unpushed."""
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        ).encode()
        self.push_blob(repository, config)
        described = [descriptor(data, OCI_LAYER) for data in layers if self.push_blob(repository, data)]
        return {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(config, OCI_CONFIG),
            "layers": described,
            **more,
        }


def descriptor(data: bytes, media_type: str) -> dict[str, object]:
    """An OCI descriptor of ``data``."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

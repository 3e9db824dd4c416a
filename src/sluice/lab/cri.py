"""The runtime's own API, called as the kubelet calls it over gRPC: ``PullImage`` and what belongs to it, and pods'
sandboxes, whose image the runtime pulls by itself.

Container Runtime Interface ``runtime.v1`` (``k8s.io/cri-api``). A pull by ``ctr`` takes another road through
containerd and reads other settings, so nothing but this proves that a node can pull.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from sluice.errors import PullFailed, Unavailable
from sluice.lab.cri_messages import MESSAGES, NODE_NETWORK, PACKAGE

ANSWER_S = 10.0
"""How long the runtime may take for what needs no network, in seconds."""
PULL_S = 600.0
"""How long a pull may take where the caller does not say, in seconds."""


@dataclass(frozen=True, slots=True)
class Auth:
    """What the kubelet hands over with a pull. No server address: the runtime answers whoever challenges it."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RuntimeVersion:
    """What the runtime calls itself."""

    name: str
    version: str
    api: str


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image that the runtime holds. ``id`` is its config's digest; ``size`` in bytes, as the runtime counts."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int


class Runtime:
    """The runtime that serves the CRI on a unix socket. A context manager: leaving hangs up."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def version(self) -> RuntimeVersion:
        """RuntimeService/Version. Raises Unavailable."""
        said = self._ask("RuntimeService/Version", "Version", {})
        return RuntimeVersion(said.runtime_name, said.runtime_version, said.runtime_api_version)

    def pull(self, reference: str, auth: Auth | None = None, timeout_s: float = PULL_S) -> str:
        """ImageService/PullImage: fetch and unpack; returns the image's id. Raises PullFailed."""
        request: dict[str, object] = {"image": {"image": reference}}
        if auth is not None:
            request["auth"] = {"username": auth.user, "password": auth.password}
        began = time.monotonic()
        try:
            return str(self._call("ImageService/PullImage", "PullImage", request, timeout_s).image_ref)
        except grpc.RpcError as error:
            reason = _reason(error)
            # The runtime knows the limit, too, and may hang up just before we do.
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or time.monotonic() - began >= timeout_s:
                reason = f"not done within {timeout_s:g} s"
            raise PullFailed(f"{reference} could not be pulled: {reason}", detail={"reason": reason}) from None

    def status(self, reference: str) -> HeldImage | None:
        """ImageService/ImageStatus: the image of this name, digest or id; None where it is not held."""
        said = self._ask("ImageService/ImageStatus", "ImageStatus", {"image": {"image": reference}})
        return _held(said.image) if said.HasField("image") else None

    def images(self) -> Sequence[HeldImage]:
        """ImageService/ListImages: every image held."""
        return tuple(_held(one) for one in self._ask("ImageService/ListImages", "ListImages", {}).images)

    def remove(self, reference: str) -> None:
        """ImageService/RemoveImage; removing what is not held is no error."""
        self._ask("ImageService/RemoveImage", "RemoveImage", {"image": {"image": reference}})

    def run_sandbox(self, name: str, cgroup: str, timeout_s: float = PULL_S) -> str:
        """RuntimeService/RunPodSandbox: start an empty pod on the node's network, in a control group below ``cgroup``;
        returns the sandbox's id. The runtime pulls its image first, with nobody's login. Raises Unavailable."""
        config = {
            "metadata": {"name": name, "uid": name, "namespace": "sluice"},
            "linux": {
                "cgroup_parent": cgroup,
                "security_context": {"namespace_options": {"network": NODE_NETWORK}},
            },
        }
        try:
            said = self._call("RuntimeService/RunPodSandbox", "RunPodSandbox", {"config": config}, timeout_s)
        except grpc.RpcError as error:
            raise Unavailable(f"the runtime at {self._socket} could not run a sandbox: {_reason(error)}") from None
        return str(said.pod_sandbox_id)

    def remove_sandbox(self, sandbox: str) -> None:
        """RuntimeService/StopPodSandbox, then RemovePodSandbox; neither minds one that is gone."""
        for message in ("StopPodSandbox", "RemovePodSandbox"):
            self._ask(f"RuntimeService/{message}", message, {"pod_sandbox_id": sandbox})

    def _ask(self, method: str, message: str, request: dict[str, object]) -> Any:
        try:
            return self._call(method, message, request, ANSWER_S)
        except grpc.RpcError as error:
            raise Unavailable(
                f"the runtime at {self._socket} does not answer {method}: {_reason(error)}; is it running?"
            ) from None

    def _call(self, method: str, message: str, request: dict[str, object], timeout_s: float) -> Any:
        call: Any = self._channel.unary_unary(
            f"/{PACKAGE}.{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=MESSAGES[f"{message}Response"].FromString,
        )
        return call(MESSAGES[f"{message}Request"](**request), timeout=timeout_s)


def pull(socket: Path, reference: str, auth: Auth | None = None, timeout_s: float = PULL_S) -> str:
    """Pull an image once; returns its id (``sha256:…`` of its config). Raises PullFailed."""
    with Runtime(socket) as runtime:
        return runtime.pull(reference, auth, timeout_s)


def _held(image: Any) -> HeldImage:
    return HeldImage(str(image.id), tuple(image.repo_tags), tuple(image.repo_digests), int(image.size))


def _reason(error: Any) -> str:
    """What the runtime gave as its reason, on one line."""
    return " ".join(str(error.details() or error.code().name).split())

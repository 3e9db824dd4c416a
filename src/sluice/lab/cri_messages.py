"""The messages of the Container Runtime Interface that a pull and a pod's sandbox need, as protobuf types made at run
time.

Names and numbers are those of the published ``runtime.v1`` API (``k8s.io/cri-api``, ``pkg/apis/runtime/v1``); a field
that is not listed here is skipped when it comes. A table of three lines a message is all there is to generate, so
there is no generated code to keep.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "runtime.v1"
# message → field → (number, kind); a kind that is no scalar's is a message's, and "*" says repeated.
FIELDS: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "VersionRequest": {"version": (1, "string")},
    "VersionResponse": {
        "runtime_name": (2, "string"),
        "runtime_version": (3, "string"),
        "runtime_api_version": (4, "string"),
    },
    "ImageSpec": {"image": (1, "string")},
    "AuthConfig": {"username": (1, "string"), "password": (2, "string"), "server_address": (4, "string")},
    "PullImageRequest": {"image": (1, "ImageSpec"), "auth": (2, "AuthConfig")},
    "PullImageResponse": {"image_ref": (1, "string")},
    "Image": {
        "id": (1, "string"),
        "repo_tags": (2, "string*"),
        "repo_digests": (3, "string*"),
        "size": (4, "uint64"),
    },
    "ImageStatusRequest": {"image": (1, "ImageSpec")},
    "ImageStatusResponse": {"image": (1, "Image")},
    "ImageFilter": {"image": (1, "ImageSpec")},
    "ListImagesRequest": {"filter": (1, "ImageFilter")},
    "ListImagesResponse": {"images": (1, "Image*")},
    "RemoveImageRequest": {"image": (1, "ImageSpec")},
    "RemoveImageResponse": {},
    "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
    "NamespaceOption": {"network": (1, "enum")},
    "LinuxSandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
    "LinuxPodSandboxConfig": {
        "cgroup_parent": (1, "string"),
        "security_context": (2, "LinuxSandboxSecurityContext"),
    },
    "PodSandboxConfig": {"metadata": (1, "PodSandboxMetadata"), "linux": (8, "LinuxPodSandboxConfig")},
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "RemovePodSandboxResponse": {},
}
NODE_NETWORK: Final = 2
"""``NamespaceMode.NODE``: the namespace that the runtime itself is in."""
_SCALARS = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "enum": FieldDescriptorProto.TYPE_INT32,  # the same on the wire
}


def _message(name: str, fields: dict[str, tuple[int, str]]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    for field, (number, kind) in fields.items():
        added = message.field.add(name=field, number=number)
        added.label = FieldDescriptorProto.LABEL_REPEATED if kind.endswith("*") else FieldDescriptorProto.LABEL_OPTIONAL
        scalar = _SCALARS.get(kind.rstrip("*"))
        if scalar is None:
            added.type = FieldDescriptorProto.TYPE_MESSAGE
            added.type_name = f".{PACKAGE}.{kind.rstrip('*')}"
        else:
            added.type = scalar
    return message


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="sluice/lab/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in FIELDS.items():
        file.message_type.append(_message(name, fields))
    # A pool of our own: another library's copy of the same API must not collide with it.
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in FIELDS}


MESSAGES: Final = _classes()
"""Message class by name. ``cri`` puts types on what comes out."""

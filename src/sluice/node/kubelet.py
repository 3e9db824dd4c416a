"""The kubelet's configuration for ``sluice-credential-provider``. PURE.

In Direct mode the upstream asks containerd for a login, and containerd has none: it uses what the kubelet hands it with
a pull. So the kubelet is told to ask our program for images of the virtual address, in every mode: it reads this file
only when it starts, and the program knows at each pull whether there is a login. It answers "do not keep this", so that
a new password counts at once.

Kubernetes: "Configure a kubelet image credential provider" (kubelet.config.k8s.io/v1). The kubelet does not start
without the program, so ``--image-credential-provider-bin-dir`` is given once it is there.
"""

from __future__ import annotations

from sluice.cluster.layout import NodeLayout
from sluice.node.files import Files, FileSpec
from sluice.node.secret_files import upstream_path
from sluice.node.serialize import dump_yaml

PROGRAM = "sluice-credential-provider"
CONFIG_VERSION = "kubelet.config.k8s.io/v1"
PROTOCOL_VERSION = "credentialprovider.kubelet.k8s.io/v1"


def render_kubelet(layout: NodeLayout) -> Files:
    """The kubelet's file; none where no kubelet is (podman alone) and in mode unmanaged."""
    if layout.mode == "unmanaged" or not {"containerd", "cri-o"} & set(layout.runtimes):
        return {}
    provider = {
        "name": PROGRAM,
        "apiVersion": PROTOCOL_VERSION,
        "matchImages": [layout.virtual],
        "defaultCacheDuration": "0s",
        "args": [upstream_path(layout)],
    }
    document = {"apiVersion": CONFIG_VERSION, "kind": "CredentialProviderConfig", "providers": [provider]}
    path = layout.paths.kubelet_credentials
    return {path: FileSpec(dump_yaml(document, path))}

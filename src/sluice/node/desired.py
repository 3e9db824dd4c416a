"""Every file that a node is to have: all renderers together. PURE.

The one place that knows which renderers there are; ``apply`` plans what they say against what is found.
"""

from __future__ import annotations

from collections.abc import Iterator

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.balancer import render_balancer, run_directory
from sluice.node.containers_conf import render_containers
from sluice.node.files import Files, FileSpec
from sluice.node.found import ancestors
from sluice.node.hosts import render_hosts
from sluice.node.kubelet import render_kubelet
from sluice.node.pods import render_pods
from sluice.node.record import OWN_NAMES
from sluice.node.secret_files import client_pem_path, render_secrets


def desired_files(layout: NodeLayout, secrets: NodeSecrets | None) -> Files:
    """By path; none in mode unmanaged. Raises ConfigInvalid where two parts want one path, or one of Sluice's own."""
    files: dict[str, FileSpec] = {}
    own = {f"{layout.paths.state}/{name}" for name in OWN_NAMES}
    for part in _parts(layout, secrets):
        for path, spec in part.items():
            if path in own or files.get(path, spec) != spec:
                raise ConfigInvalid(
                    f"paths: two different files would be {path}: give each part a directory of its own"
                )
            files[path] = spec
    above = ancestors(files) | {run_directory(layout)}
    for path in files:
        if path in above:
            raise ConfigInvalid(f"paths: {path} would be a file and a directory: give each part one of its own")
    return files


def _parts(layout: NodeLayout, secrets: NodeSecrets | None) -> Iterator[Files]:
    if layout.mode == "unmanaged":
        return
    yield render_secrets(layout, secrets)
    yield render_hosts(layout, secrets)
    yield render_containers(layout, secrets)
    yield render_kubelet(layout)
    if secrets is not None:
        yield render_balancer(layout, client_pem_path(layout, secrets))
    yield render_pods(layout)

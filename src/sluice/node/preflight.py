"""Can this node do what a layout wants? What stands in the way, each with where and how to go on.

``find_all`` is what ``plan``, ``apply`` and ``status`` show, and the agent in its two parts; ``prepare`` repairs what
it can. What containerd's configuration does is judged here, PURE; ``containers_check`` does it for CRI-O and podman,
``certificate_check`` for what the node shows to replicas. Facts: containerd ``docs/hosts.md`` and
``docs/cri/registry.md``. Foreign files for hosts that Sluice serves are a plan's refusals.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.cluster.status import Finding
from sluice.node.certificate_check import check_certificate
from sluice.node.containerd import ContainerdFacts, Table, images_plugin, read_containerd, registry_table
from sluice.node.containers_check import check_containers
from sluice.node.containers_found import read_registries
from sluice.node.drop_in import DROP_IN_NAME

KNOWN_FIRST, KNOWN_LAST = (1, 6), (2, 3)
NAMED_MAX = 5
_PREPARE = "run sluice node prepare, which sets it"


def find_all(layout: NodeLayout, secrets: NodeSecrets | None, now: float) -> tuple[Finding, ...]:
    """Everything about a node that keeps images from coming as its layout says; ``now`` in seconds of the epoch."""
    return (*look_at_runtimes(layout), *check_certificate(layout, secrets, now))


def look_at_runtimes(layout: NodeLayout) -> tuple[Finding, ...]:
    """Whether they take what is written for them. Asks containerd, which takes a moment."""
    found: tuple[Finding, ...] = ()
    if uses_containerd(layout):
        found = check_containerd(layout, read_containerd(Path(layout.paths.containerd_config)))
    return (*found, *check_containers(layout, read_registries(layout)))


def check_containerd(layout: NodeLayout, facts: ContainerdFacts) -> tuple[Finding, ...]:
    """All findings; none where containerd is not among the runtimes or nothing is managed."""
    return tuple(_findings(layout, facts)) if uses_containerd(layout) else ()


def uses_containerd(layout: NodeLayout) -> bool:
    """Whether anything is written for containerd."""
    return layout.mode != "unmanaged" and "containerd" in layout.runtimes


def _findings(layout: NodeLayout, facts: ContainerdFacts) -> Iterator[Finding]:
    where = layout.paths.containerd_config
    yield from _version(facts)
    if facts.problem is not None:
        yield Finding(what=f"is not usable ({facts.problem})", where=where, remedy="repair it", blocking=True)
        return
    table = registry_table(facts.config)
    yield from _config_path(layout, table)
    yield from _legacy(where, facts.config, table)
    yield from _hidden(where, facts)
    if facts.stale:
        remedy = "restart containerd once; running containers stay"
        yield Finding(what="was changed since containerd started", where=where, remedy=remedy, blocking=True)


def _version(facts: ContainerdFacts) -> Iterator[Finding]:
    if facts.version is None:
        yield Finding(
            what="is not installed, or does not tell its version",
            where="containerd",
            remedy="install it, or leave it out of the layout's runtimes",
            blocking=not facts.asked and not facts.config,
        )
    elif not KNOWN_FIRST <= facts.version[:2] <= KNOWN_LAST:
        numbers = ".".join(map(str, facts.version))
        known = f"{'.'.join(map(str, KNOWN_FIRST))} to {'.'.join(map(str, KNOWN_LAST))}"
        yield Finding(what=f"is version {numbers}", where="containerd", remedy=f"use one that is known: {known}")


def _config_path(layout: NodeLayout, table: Table) -> Iterator[Finding]:
    where, meant = layout.paths.containerd_config, layout.paths.containerd_hosts
    found = str(table.get("config_path") or "")
    if found.rstrip("/") == meant:
        return
    if not found:
        yield Finding(what="does not set config_path", where=where, remedy=_PREPARE, blocking=True)
    elif ":" in found:
        yield Finding(
            what=f"sets config_path to several directories ({found}), of which containerd's pulls take none",
            where=where,
            remedy=_PREPARE,
            blocking=True,
        )
    else:
        yield Finding(
            what=f"sets config_path to {found}, and the layout writes to {meant}",
            where=where,
            remedy="set paths.containerd_hosts of the layout to it, or run sluice node prepare, which changes it",
            blocking=True,
        )


def _hidden(where: str, facts: ContainerdFacts) -> Iterator[Finding]:
    """Images come as they should all the same: it is the user's own settings that wait."""
    if facts.hidden:
        named = ", ".join(facts.hidden[:NAMED_MAX]) + (", …" if len(facts.hidden) > NAMED_MAX else "")
        what = f"was changed since sluice node prepare, without effect: {DROP_IN_NAME} goes before it ({named})"
        remedy = "run sluice node prepare again, which takes the change over, and restart containerd once"
        yield Finding(what=what, where=where, remedy=remedy)


def _legacy(where: str, config: Table, table: Table) -> Iterator[Finding]:
    """With ``config_path`` and one of these tables, containerd's CRI plugin refuses to load."""
    plugin = images_plugin(config)
    place = f'plugins."{plugin}".registry'
    if table.get("mirrors"):
        names = ", ".join(sorted(table["mirrors"]))
        remedy = "remove it: list these registries in the layout, or give each a hosts.toml"
        yield Finding(what=f"has {place}.mirrors for {names}", where=where, remedy=remedy, blocking=True)
    tls = [name for name, one in sorted(table.get("configs", {}).items()) if isinstance(one, dict) and one.get("tls")]
    if tls:
        remedy = "move it into a hosts.toml (ca, client, skip_verify), and remove it"
        yield Finding(
            what=f"has {place}.configs with tls for {', '.join(tls)}", where=where, remedy=remedy, blocking=True
        )
    disabled = set(config.get("disabled_plugins", ())) & {"cri", plugin, "io.containerd.grpc.v1.cri"}
    if disabled:
        what = f"disables the plugin {', '.join(sorted(disabled))}, by which a kubelet pulls"
        yield Finding(what=what, where=where, remedy="take it out of disabled_plugins", blocking=True)

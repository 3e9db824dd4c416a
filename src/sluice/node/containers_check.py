"""Do other files of CRI-O and podman undo what is written for them? Each finding with where and how to go on. PURE.

Beside ``preflight``, which looks at containerd. Of all files that are read (``registries.conf``, then the drop-ins by
name) the last one to name a prefix is taken, whole, and for an image the longest prefix; a file that cannot be read
fails every pull. Containers-registries.conf(5), containers-registries.conf.d(5); tried with skopeo 1.9.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping

from sluice.cluster.layout import NodeLayout
from sluice.cluster.status import Finding
from sluice.node.containers_conf import RUNTIMES, registries_path

DROP_INS = "registries.conf.d"


def check_containers(layout: NodeLayout, found: Mapping[str, bytes]) -> tuple[Finding, ...]:
    """All findings in the files ``found`` by path; none where neither runtime is in the layout."""
    if layout.mode == "unmanaged" or not RUNTIMES & set(layout.runtimes):
        return ()
    ours = registries_path(layout)
    return tuple(
        finding
        for path, raw in sorted(found.items())
        if path != ours
        for finding in _findings(layout, path, raw, later=f"/{DROP_INS}/" in path and path > ours)
    )


def _findings(layout: NodeLayout, path: str, raw: bytes, later: bool) -> Iterator[Finding]:
    try:
        document = tomllib.loads(raw.decode())
    except ValueError:
        yield Finding(what="is no TOML, and every pull fails over it", where=path, remedy="repair it", blocking=True)
        return
    names = (layout.virtual, *(one.name for one in layout.registries))
    for prefix in _prefixes(document):
        if prefix in names and later:
            yield Finding(
                what=f"is read after the file of Sluice and takes its place for {prefix}",
                where=path,
                remedy="remove the registry there, or leave it out of the layout",
                blocking=True,
            )
        name = next((name for name in names if prefix.startswith(f"{name}/")), None)
        if name is not None:
            yield Finding(
                what=f"sends images below {prefix} elsewhere than the layout sends those of {name}",
                where=path,
                remedy="remove it, unless that is meant",
            )


def _prefixes(document: Mapping[str, object]) -> list[str]:
    """Of the tables ``[[registry]]``; one without a prefix is about its location."""
    tables = document.get("registry")
    found = [one for one in tables if isinstance(one, dict)] if isinstance(tables, list) else []
    return [prefix for one in found if isinstance(prefix := one.get("prefix") or one.get("location"), str)]

"""What other files of CRI-O and podman do to ours is found, and is what these programs really do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.given import node_layout, paths_below
from node.scene import NAME, VIRTUAL, Scene, needs_parts, scene
from node.test_containers_conf import copied
from sluice.node.containers_check import check_containers
from sluice.node.containers_found import read_registries

LAYOUT = node_layout(runtimes=["podman"])
ROOT = LAYOUT.paths.containers
LATER, EARLIER = f"{ROOT}/registries.conf.d/99-user.conf", f"{ROOT}/registries.conf.d/10-user.conf"
SAME = f'[[registry]]\nprefix = "{VIRTUAL}"\nlocation = "127.0.0.1:9"\n'
BELOW = f'[[registry]]\nprefix = "{VIRTUAL}/demo"\nlocation = "127.0.0.1:9"\n'
BARE = '[[registry]]\nlocation = "docker.io"\nblocked = true\n'
PLACE = f"is read after the file of Sluice and takes its place for {VIRTUAL}"


@pytest.mark.parametrize(
    ("path", "text", "whats"),
    [
        (LATER, SAME, [PLACE]),
        (LATER, BARE, ["is read after the file of Sluice and takes its place for docker.io"]),
        (EARLIER, SAME, []),
        (f"{ROOT}/registries.conf", SAME, []),
        (EARLIER, BELOW, [f"sends images below {VIRTUAL}/demo elsewhere than the layout sends those of {VIRTUAL}"]),
        (EARLIER, "[[registry", ["is no TOML, and every pull fails over it"]),
        (LATER, '[[registry]]\nprefix = "other.example"\nlocation = "a.example"\n', []),
        (LATER, 'unqualified-search-registries = ["docker.io"]\nregistry = 5\n', []),
        (LATER, "registry = [1]\n", []),
        (f"{ROOT}/registries.conf.d/50-sluice.conf", "[[registry", []),
    ],
)
def test_what_undoes_ours_is_found(path: str, text: str, whats: list[str]) -> None:
    """A later file for the same registry, a longer prefix anywhere, and a file that is none."""
    found = check_containers(LAYOUT, {path: text.encode()})
    assert [(path, what) for what in whats] == [(one.where, one.what) for one in found]
    assert all(one.blocking == ("below" not in one.what) for one in found)


def test_other_nodes_have_no_findings(tmp_path: Path) -> None:
    """Without these runtimes the files are nobody's; a node without files has none to read."""
    assert () == check_containers(node_layout(), {LATER: SAME.encode()})
    assert () == check_containers(node_layout(mode="unmanaged", sources=[], runtimes=["podman"]), {LATER: b"["})
    assert {} == read_registries(node_layout(runtimes=["podman"], paths=paths_below(tmp_path)))


@pytest.fixture(scope="module")
def there() -> Iterator[Scene]:
    with scene("plain") as made:
        yield made


@needs_parts
@pytest.mark.parametrize(
    ("name", "text", "whats"),
    [
        ("registries.conf", SAME, []),
        ("registries.conf.d/10-user.conf", SAME, []),
        ("registries.conf.d/99-user.conf", SAME, [PLACE]),
        ("registries.conf.d/99-user.conf", "[[registry", ["is no TOML, and every pull fails over it"]),
        (
            "registries.conf",
            BELOW,
            [f"sends images below {VIRTUAL}/demo elsewhere than the layout sends those of {VIRTUAL}"],
        ),
    ],
)
def test_a_finding_is_what_skopeo_does(there: Scene, name: str, text: str, whats: list[str]) -> None:
    """Where there is a finding the image does not come; where there is none it does."""
    layout = there.put(there.layout("replicas"))
    other = Path(layout.paths.containers, name)
    other.write_text(text)
    try:
        assert whats == [one.what for one in check_containers(layout, read_registries(layout))]
        assert bool(whats) == bool(copied(layout, f"{VIRTUAL}/{NAME}:v1"))
    finally:
        other.unlink()

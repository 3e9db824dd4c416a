"""``docs/node.md``: its tables are the models', and its examples are what they say they are."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sluice.cli.app import run
from sluice.cli.node_manual import NAMES, with_tables
from sluice.cluster.documents import load_document
from sluice.cluster.layout import NodeLayout, NodeSecrets, Paths
from sluice.config import ConfigSource
from sluice.config.section import Section
from sluice.errors import ConfigInvalid
from sluice.node.apply import intend, plan_intent

PAGE = Path(__file__).parent.parent.parent / "docs" / "node.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAYOUT, SECRETS, REGISTRY = "# layout.yaml\n", "# secrets.yaml\n", "# registry.yaml\n"


@dataclass(frozen=True, slots=True)
class Example:
    """One of the page's: both documents, and the files that are said to come of them."""

    layout: str
    secrets: str
    files: list[str]


def blocks(language: str) -> list[str]:
    return [content for found, content in BLOCK.findall(TEXT) if found == language]


def examples() -> list[Example]:
    layouts = [one for one in blocks("yaml") if one.startswith(LAYOUT)]
    secrets = [one for one in blocks("yaml") if one.startswith(SECRETS)]
    files = [one.splitlines() for one in blocks("text")]
    return [Example(*parts) for parts in zip(layouts, secrets, files, strict=True)]


def load(directory: Path, example: Example) -> tuple[NodeLayout, NodeSecrets]:
    """As a node does, from files."""
    (directory / "layout.yaml").write_text(example.layout, encoding="utf-8")
    (directory / "secrets.yaml").write_text(example.secrets, encoding="utf-8")
    return (
        load_document(NodeLayout, directory / "layout.yaml"),
        load_document(NodeSecrets, directory / "secrets.yaml"),
    )


def written(layout: NodeLayout, secrets: NodeSecrets, root: Path) -> list[str]:
    """What an apply would write with all paths below ``root``, sorted, without it."""
    moved = Paths(**{key: f"{root}{path}" for key, path in layout.paths.model_dump().items()})
    plan = plan_intent(intend(layout.model_copy(update={"paths": moved}), secrets))
    assert plan.refusals == ()
    return sorted(step.path.removeprefix(str(root)) for step in plan.steps if step.do == "write")


@pytest.mark.parametrize("example", examples(), ids=["proxy", "direct", "static pods"])
def test_examples(tmp_path: Path, example: Example) -> None:
    """Each example's documents load, and the plan for a node without any files writes those that the page lists."""
    layout, secrets = load(tmp_path, example)
    assert example.files == written(layout, secrets, tmp_path / "root")


def test_no_example_is_left_out() -> None:
    """Every YAML on the page is a document that a test loads."""
    assert [] == [one for one in blocks("yaml") if not one.startswith((LAYOUT, SECRETS, REGISTRY))]


def test_configuration_of_a_replica(tmp_path: Path) -> None:
    """The registry's file is one that ``sluice serve`` takes, all of it in what the example's pod sees."""
    (text,) = (one for one in blocks("yaml") if one.startswith(REGISTRY))
    (tmp_path / "registry.yaml").write_text(text, encoding="utf-8")
    config = ConfigSource(tmp_path / "registry.yaml", {}, {}).load()
    layout = load(tmp_path, examples()[-1])[0]
    pod = layout.replica_pod
    assert pod is not None
    (here,) = (one.authority for one in layout.replicas if one.name == layout.node)
    assert (str(config.data), config.nodes.listen) == (pod.data, here)
    folder = Path(pod.config).parent
    assert all(folder in Path(str(path)).parents for path in (config.tls.certificate, config.tls.key, config.nodes.ca))


def test_documents_from_the_pki(tmp_path: Path) -> None:
    """The page's commands make, of the CAs, secrets and the authorities of the first example's layout."""
    (commands,) = (one for one in blocks("sh") if "pki issue" in one)
    assert run(["pki", "init", str(tmp_path / "pki")]) == 0
    example = examples()[0]
    (tmp_path / "layout.yaml").write_text(example.layout.partition("authorities:")[0], encoding="utf-8")
    program = commands.replace("/etc/sluice/pki", str(tmp_path / "pki")).replace(
        "sluice pki", f"{sys.executable} -m sluice pki"
    )
    subprocess.run(["sh", "-euc", program], cwd=tmp_path, check=True, capture_output=True)
    made = Example((tmp_path / "layout.yaml").read_text(), (tmp_path / "secrets.yaml").read_text(), [])
    layout, secrets = load(tmp_path, made)
    expected, _ = load(tmp_path, example)
    assert expected.model_copy(update={"authorities": layout.authorities}) == layout
    assert (tmp_path / "pki/servers/bundle.crt").read_text() == layout.authorities
    assert secrets.certificate == (tmp_path / "worker-1/tls.crt").read_text()
    assert 0o600 == (tmp_path / "secrets.yaml").stat().st_mode & 0o777


def test_tables_are_up_to_date(tmp_path: Path) -> None:
    """The page has the tables that ``sluice node-docs`` writes, and the command finds nothing to change."""
    assert with_tables(TEXT) == TEXT
    copy = tmp_path / "node.md"
    copy.write_text(TEXT.replace("| `balancer_image` |", "| `image_of_balancer` |"), encoding="utf-8")
    assert run(["node-docs", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == TEXT
    with pytest.raises(ConfigInvalid, match="has no line '## All fields'"):
        with_tables("# A node\n")


@pytest.mark.parametrize("model", NAMES, ids=NAMES.values())
def test_every_field_says_what_it_is_for(model: type[Section]) -> None:
    """No field is without a description."""
    assert [] == [name for name, field in model.model_fields.items() if not field.description]

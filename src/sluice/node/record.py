"""Sluice's memory of a node: which files are ours, what was there before, and what was being done when power failed.

``plan`` reads the record, ``apply`` writes it; ``Journal`` is an apply in the middle. All of it lies in
``<paths.state>``, each document in one file that is replaced whole, so that every reader sees the old or the new one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from sluice.cluster.layout import NodeLayout, NodeSecrets
from sluice.errors import ConfigInvalid
from sluice.node.found import FileState
from sluice.node.imports import ImportEdit
from sluice.pki.durable import read_bounded

RECORD, JOURNAL, LAYOUT, SECRETS, STATUS, AGENT_LOCK = (
    "record.json",
    "journal.json",
    "layout.json",
    "secrets.json",
    "status.json",
    "agent.lock",
)
OWN_NAMES = frozenset({RECORD, JOURNAL, LAYOUT, SECRETS, STATUS, AGENT_LOCK})
OWN_DIRECTORIES = ("balancer",)
"""Below the state directory, of running programs; nothing in them is anybody else's."""
STATE_BYTES_MAX = 64 << 20
Kind = TypeVar("Kind", bound=BaseModel)
Part = Literal["node", "runtime"]
"""Whose a file is: ``node``: the layout's (``apply``), ``runtime``: of containerd's configuration (``prepare``)."""


class Document(BaseModel):
    """A part of what is kept; frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Kept(Document):
    """A whole file as it is to be written again. ``mtime_ns``: None for the time of writing."""

    content: Base64Bytes = Field(repr=False)
    mode: int
    uid: int
    gid: int
    mtime_ns: int | None = None

    @property
    def state(self) -> FileState:
        """The file itself."""
        return FileState(self.content, self.mode, self.uid, self.gid, self.mtime_ns)


class Entry(Document):
    """A file of ours. ``original`` is what stood there when we first came, kept until ``undo``. ``unwanted_at``: since
    when (seconds of the epoch) nobody wants it, while something that runs may still have its name. ``edit``: what in
    somebody else's file is ours; ``sha256`` is of the file when that was put in, and ``original`` from before it."""

    sha256: str
    part: Part = "node"
    early: bool = False
    check: str | None = None
    private: bool = False
    original: Kept | None = Field(default=None, repr=False)
    unwanted_at: float | None = None
    edit: ImportEdit | None = None


class Record(Document):
    """Everything that is ours. ``directories`` are those that we made, with their modes. ``accepted``: foreign paths
    that were left in place by force, and are in nobody's way since."""

    format: Literal[1] = 1
    files: dict[str, Entry] = {}
    directories: dict[str, int] = {}
    accepted: tuple[str, ...] = ()


class Step(Document):
    """One change of a journal: a file's ``before`` and ``after`` (None: absent), or a directory made or removed.

    ``group`` orders: what is in a lower one is on disk before anything of a higher one begins.
    """

    do: Literal["make", "write", "remove", "unmake", "reload", "stop"]
    path: str
    group: int
    before: Kept | None = Field(default=None, repr=False)
    after: Kept | None = Field(default=None, repr=False)
    mode: int = 0o755
    check: str | None = None


class Journal(Document):
    """An apply or undo that has begun. ``token`` is in the names of its temporary files. ``leave``: directories that
    go when all else is done and the journal itself is gone, children first; of the first, the programs', all goes."""

    token: str
    steps: tuple[Step, ...]
    leave: tuple[str, ...] = ()


def keep(state: FileState) -> Kept:
    """As it goes into a document."""
    return Kept.model_construct(
        content=state.content, mode=state.mode, uid=state.uid, gid=state.gid, mtime_ns=state.mtime_ns
    )


def digest(content: bytes) -> str:
    """How a file's content is named in the record."""
    return hashlib.sha256(content).hexdigest()


def remembers(state: Path) -> bool:
    """Whether there is anything of ours in this directory."""
    return any((state / name).exists() for name in OWN_NAMES)


def read_record(state: Path) -> Record:
    """An empty one where there is none. Raises ConfigInvalid where it is damaged."""
    return _read(Record, state / RECORD) or Record()


def read_journal(state: Path) -> Journal | None:
    """None unless an apply was interrupted. Raises ConfigInvalid where it is damaged."""
    return _read(Journal, state / JOURNAL)


def read_layout(state: Path) -> NodeLayout | None:
    """The layout that was applied last. Raises ConfigInvalid where it is damaged."""
    return _read(NodeLayout, state / LAYOUT)


def read_secrets(state: Path) -> NodeSecrets | None:
    """The secrets that were applied last. Raises ConfigInvalid where they are damaged."""
    return _read(NodeSecrets, state / SECRETS)


def encode(document: BaseModel) -> bytes:
    """As it is written to disk; what is at its default is left out."""
    return document.model_dump_json(exclude_defaults=True, indent=1).encode() + b"\n"


def _read(model: type[Kind], path: Path) -> Kind | None:
    raw = read_bounded(path, STATE_BYTES_MAX)
    if raw is None:
        return None
    try:
        return model.model_validate_json(raw)
    except ValidationError:
        raise ConfigInvalid(f"{path} is damaged; it is Sluice's own: {_remedy(path)}") from None


def _remedy(path: Path) -> str:
    if path.name in {LAYOUT, SECRETS}:
        return "remove it, the next apply writes it anew"
    return (
        "restore it from a backup, "
        f"or move {path.parent} away and give the files that Sluice wrote the content they should have"
    )

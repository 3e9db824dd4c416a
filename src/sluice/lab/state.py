"""What a laboratory leaves on disk: its directory, the document in it, and who works on it just now.

The document says what was wanted, not what runs: that is asked of the kernel (``ground``, ``processes``). So nothing in
it can be out of date after a crash, and a laboratory whose document is lost can still be ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from sluice.cluster.documents import dump_document, load_document
from sluice.config.section import Section
from sluice.errors import ConfigInvalid, Unavailable
from sluice.lab.topology import UPSTREAM, LabShape, Machine
from sluice.pki.durable import make_directory, write_durably

DEFAULT_DIRECTORY = Path(".sluice/lab")
STATE_NAME, LOCK_NAME = "lab.json", "lock"
FOLDERS = ("machines", "logs", "pki", "images")
FORMAT = 1
HIDDEN = ("/run/", "/proc/", "/sys/", "/dev/", "/var/run/")
"""Where nothing of this machine can be seen from inside."""


class LabState(Section):
    """The document. ``created`` lists the directories above the laboratory's that ``up`` had to make, inner ones first;
    ``began_at`` in seconds since the epoch."""

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    shape: LabShape
    began_at: float
    created: tuple[str, ...] = ()


class LabDirectory:
    """A laboratory's files. All paths are absolute."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(os.path.realpath(directory))
        self._created: tuple[str, ...] = ()

    @property
    def state_file(self) -> Path:
        """The document."""
        return self.path / STATE_NAME

    @property
    def logs(self) -> Path:
        """A file for each part."""
        return self.path / "logs"

    @property
    def pki(self) -> Path:
        """The authorities."""
        return self.path / "pki"

    @property
    def images(self) -> Path:
        """OCI layouts, which are pushed when it comes up."""
        return self.path / "images"

    @property
    def machines(self) -> Path:
        """A directory for each machine."""
        return self.path / "machines"

    def machine(self, machine: Machine) -> Path:
        """What the machine sees as its ``home``."""
        return self.machines / machine.name

    def log(self, part: str) -> Path:
        """Where a part's output goes."""
        return self.logs / f"{part.replace('/', '-')}.log"

    @property
    def cgroup(self) -> str:
        """The control group that the laboratory's containers are in."""
        return f"sluice-lab-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]}"

    def create(self, shape: LabShape, now: float) -> None:
        """Write the document and make the folders; the caller holds the lock. Raises ConfigInvalid, StorageFull."""
        write_durably(self.state_file, dump_document(LabState(shape=shape, began_at=now, created=self._created)))
        for folder in FOLDERS:
            make_directory(self.path / folder)

    def load(self) -> LabState:
        """Raises ConfigInvalid where there is no laboratory, or its document cannot be read."""
        if not self.state_file.exists():
            raise ConfigInvalid(f"there is no laboratory in {self.path}: sluice lab up makes one")
        return load_document(LabState, self.state_file)

    @property
    def is_ours(self) -> bool:
        """Whether what is in there was made by a laboratory, even if its document is lost."""
        return self.state_file.exists() or (self.machines / UPSTREAM).is_dir()

    def clear(self) -> None:
        """Remove what a laboratory makes, and nothing else, but for the directory. Does nothing where nothing is."""
        if self.is_ours:
            for folder in FOLDERS:
                shutil.rmtree(self.path / folder, ignore_errors=True)
            self.state_file.unlink(missing_ok=True)

    def remove(self) -> None:
        """``clear``, and then the directory with those above it that were made for it, as far as they are empty."""
        created = self._created_before() or self._created
        self.clear()
        (self.path / LOCK_NAME).unlink(missing_ok=True)
        for directory in (self.path, *map(Path, created)):
            with contextlib.suppress(OSError):
                directory.rmdir()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands that change the laboratory out; the directory is made if it is missing.

        Raises ConfigInvalid where other things are in there, Unavailable where another command is at work.
        """
        self._require_usable()
        self._created = tuple(str(one) for one in self.path.parents if not one.exists())
        self._created += self._created_before()
        make_directory(self.path)
        with (self.path / LOCK_NAME).open("a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable(
                    f"another command works on the laboratory in {self.path}: wait for it, or end it with Ctrl-C; "
                    "sluice lab down --force takes everything away from under it"
                ) from None
            lock.truncate(0)
            lock.write(json.dumps(self._created).encode())
            lock.flush()
            yield

    def _created_before(self) -> tuple[str, ...]:
        """The directories that were made for the laboratory which is there: by its document, or where that is lost, by
        what the lock's file says of them."""
        with contextlib.suppress(ConfigInvalid):
            return self.load().created
        with contextlib.suppress(OSError, ValueError):
            noted = json.loads((self.path / LOCK_NAME).read_bytes())
            above = [str(one) for one in self.path.parents]
            return tuple(one for one in noted if one in above) if isinstance(noted, list) else ()
        return ()

    def _require_usable(self) -> None:
        if str(self.path).startswith(HIDDEN):
            raise ConfigInvalid(f"directory {self.path} disappears inside the laboratory: choose one elsewhere")
        known = {*FOLDERS, STATE_NAME, LOCK_NAME} if self.is_ours else {LOCK_NAME}
        held = sorted(one.name for one in self.path.iterdir()) if self.path.is_dir() else []
        foreign = [name for name in held if name not in known]
        if foreign:
            raise ConfigInvalid(f"directory {self.path} holds {foreign[0]!r}, which is no laboratory's: choose another")

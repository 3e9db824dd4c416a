"""Laboratories for tests: up for a module, and nothing of them left."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sluice.lab.down import take_down
from sluice.lab.laboratory import open_laboratory
from sluice.lab.scene import LabScene
from sluice.lab.state import LabDirectory
from sluice.lab.topology import LabShape
from sluice.lab.up import raise_lab

WAIT_S = 30.0


@contextlib.contextmanager
def cluster(**shape: object) -> Iterator[LabScene]:
    """A laboratory of this shape (``LabShape``)."""
    directory = Path(tempfile.mkdtemp(prefix="slt-"))
    try:
        raise_lab(directory, LabShape.model_validate(shape), lambda _part, _what: None)
        yield LabScene(open_laboratory(directory))
    finally:
        take_down(LabDirectory(directory))
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(true: Callable[[], bool], seconds: float = WAIT_S) -> float:
    """Return how long it took, in seconds; fails where it does not come to that."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        time.sleep(0.02)
    return time.monotonic() - began

"""Content between its file's rename and its index row: marked, so that a process killed there leaves no file behind.

Such a file is nobody's: whoever sent it was not told that it is held. Without a mark it would look like content whose
row was lost, which nothing here ever deletes, and a cache's budget would not know of it. A mark is an empty file in
``uploads/``, made before the rename and not fsynced: file systems with a journal keep the two in order.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import partial

from sluice.errors import DigestInvalid
from sluice.oci.digest import Digest
from sluice.store.index import Index
from sluice.store.paths import FILE_MODE, Paths
from sluice.store.queries import is_known

_PREFIX = "placing-"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def placing(paths: Paths, digest: Digest) -> Iterator[None]:
    """The content's file comes within this block, and so does its row, or the file goes again. Under its
    ``content_lock``. Raises OSError."""
    mark = paths.uploads / f"{_PREFIX}{digest.algorithm}-{digest.hex}"
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT, FILE_MODE))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the next start finds it, and the row
            mark.unlink()


def drop_unplaced(paths: Paths, index: Index) -> None:
    """Unlink what a process before this one was placing and did not enter. Before anybody else uses the store."""
    for mark in paths.uploads.glob(_PREFIX + "*"):
        with contextlib.suppress(DigestInvalid):
            digest = Digest.parse(mark.name.removeprefix(_PREFIX).replace("-", ":", 1))
            if not index.read(partial(is_known, digest=digest)):
                paths.content(digest).unlink(missing_ok=True)
                _log.info("content %s was not entered before the end of the process that brought it: dropped", digest)
        mark.unlink()

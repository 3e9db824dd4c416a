"""Handing work to the store's threads, until the store is closed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

from sluice.errors import Unavailable

T = TypeVar("T")


def submit(executor: Executor, job: Callable[..., T], *arguments: object) -> Future[T]:
    """Run ``job`` in a thread of ``executor``; raises Unavailable where the store is closed, since a request that comes
    while the server stops is nobody's mistake."""
    try:
        return executor.submit(job, *arguments)
    except RuntimeError:
        raise Unavailable("the store is closed: the server is stopping") from None

"""How a data command gets its work done: by the server that holds the data directory, or by itself if none runs.

Both ways run the same function of ``server.operations``. Without a server the command takes the directory's lock for as
long as it works, so that a server that starts meanwhile is told who has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sluice.config import RegistryConfig
from sluice.errors import ConfigInvalid
from sluice.server.admin import SOCKET_NAME, exchange, reach

Progress = Callable[[object], None]


def perform(
    config: RegistryConfig,
    command: str,
    arguments: Mapping[str, object],
    on_progress: Progress = lambda _: None,
    *,
    creates: bool = False,
) -> Any:
    """Run one of ``server.operations.handlers`` and return its result, plain values as JSON has them.

    ``creates`` says that the command makes sense on a data directory that does not exist yet. Raises SluiceError.
    """
    connection = reach(config.data / SOCKET_NAME)
    if connection is not None:
        return exchange(connection, command, arguments, on_progress)
    if not creates and not config.data.is_dir():
        raise ConfigInvalid(
            f"data is '{config.data}': no such directory; name the one that sluice serve uses with --data"
        )
    from sluice.server.operations import perform_alone  # slow to import  # noqa: PLC0415

    return asyncio.run(perform_alone(config, command, arguments, on_progress))


def pages(config: RegistryConfig, command: str, member: str, arguments: Mapping[str, object]) -> Iterator[Any]:
    """Every entry of a listing, fetched in bounded pages: the ``member`` of each result, until there is no ``next``."""
    after: object = None
    while True:
        page = perform(config, command, {**arguments, "after": after})
        yield from page[member]
        after = page["next"]
        if after is None:
            return

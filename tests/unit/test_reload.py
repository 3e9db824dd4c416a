"""A configuration file that changes at an awkward moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sluice.config import ConfigSource, RegistryConfig
from sluice.server.reload import Reload


class Overtaken(ConfigSource):
    """Its file is another one as soon as it has been read for the first time."""

    def load(self) -> RegistryConfig:
        found = super().load()
        assert self.path is not None
        if found.cache.tag_fresh_s == 1:
            put(self.path, 2)
        return found


def put(file: Path, fresh_s: int) -> None:
    new = file.with_suffix(".new")
    new.write_text(f"cache: {{tag_fresh_s: {fresh_s}}}\n")
    new.replace(file)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    """What was written just after the file had been read is in force with the next look."""
    file = tmp_path / "sluice.yaml"
    put(file, 0)
    applied: list[float] = []

    async def apply(config: RegistryConfig) -> None:
        applied.append(config.cache.tag_fresh_s)

    async def story() -> None:
        source = Overtaken(file, {}, {})
        reload = Reload(source, source.load(), apply)
        put(file, 1)
        await reload.look()
        await reload.look()

    asyncio.run(story())
    assert [1.0, 2.0] == applied

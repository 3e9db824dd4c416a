"""``sluice serve``: the configuration, then the server until it is told to stop."""

from __future__ import annotations

import click

from sluice.cli.options import with_settings
from sluice.config import ConfigSource


@click.command()
@with_settings
def serve(source: ConfigSource) -> int:
    """Run the registry until SIGTERM or Ctrl-C.

    The configuration file is read again when it changes; the mode and its upstreams change without a restart.

    A flag wins over its environment variable, that over the file, that over the default.
    """
    import uvloop  # the other commands start faster without the server  # noqa: PLC0415

    from sluice.server import run  # noqa: PLC0415

    return uvloop.run(run.serve(source))

"""The ``sluice`` command: the only place that reads arguments, prints results and chooses exit codes."""

from sluice.cli.app import main

__all__ = ["main"]

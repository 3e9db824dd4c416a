"""The command line as a whole: which commands there are, and how everything that goes wrong ends.

Results go to standard output, the story to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
configuration, 130 interrupted. No user sees a traceback for what the system or they themselves can do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

import sluice
from sluice.cli.show import OUTPUT, show_record
from sluice.errors import ConfigInvalid, SluiceError

_PLACES = {
    "serve": "serve:serve",
    "user": "users:user",
    "gc": "content:gc",
    "fsck": "content:fsck",
    "tags": "content:tags",
    "cache": "cache:cache",
    "config-docs": "manual:config_docs",
    "node-docs": "node_manual:node_docs",
    "demo": "demo:demo",
    "node": "node:node",
    "lab": "lab:lab",
    "pki": "pki:pki",
}
"""Which module below ``sluice.cli`` holds a command, and its name there."""
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class _Commands(click.Group):
    """Imports a command's module when that command is asked for: the agent of a node shall not carry a registry."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted((*super().list_commands(context), *_PLACES))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _PLACES:
            return super().get_command(context, name)
        module, _, attribute = _PLACES[name].partition(":")
        found = getattr(import_module(f"sluice.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command_line() -> None:
    """A container image registry for clusters: durable, complete to the OCI specification, and fast."""


@command_line.command()
@OUTPUT
def version(output: str) -> None:
    """Print which Sluice this is."""
    show_record({"version": sluice.__version__}, output, f"sluice {sluice.__version__}")


def main() -> None:
    """Entry point of the ``sluice`` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors have become a line on standard error."""
    try:
        code = command_line.main(list(arguments), prog_name="sluice", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort as abort:
        return (
            INTERRUPTED if isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt) else _failed("aborted")
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ConfigInvalid as error:
        return _failed(error.message, USAGE)
    except SluiceError as error:
        return _failed(error.message)
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        return _failed(f"{error.filename or 'system'}: {error.strerror or error}")
    return code if isinstance(code, int) else DONE


def _failed(message: str, code: int = FAILED) -> int:
    print(f"sluice: {message}", file=sys.stderr)
    return code


def _reader_left() -> int:
    """Whoever read our output (``head``, a pager) has gone. Point stdout nowhere, or the exit would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED

"""``sluice user``: who may use the registry."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sluice.cli.options import with_data
from sluice.cli.reach import pages, perform
from sluice.cli.show import OUTPUT, show_record, show_rows, when
from sluice.config import RegistryConfig
from sluice.errors import ConfigInvalid

PASSWORD_FILE_BYTES = 4096
"""Most that is read of a file or stream with a password, in bytes."""


@click.group()
def user() -> None:
    """Say who may use the registry. Takes effect at once, whether a server runs or not."""


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "write", "admin"]), required=True, help="What the user may do.")
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    metavar="REPOSITORY",
    help="Only repositories at or below this one; can be repeated. Without it: all.",
)
@click.option("--password-file", type=click.Path(path_type=Path), metavar="PATH", help="Read the password from a file.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@OUTPUT
@with_data
def add(
    name: str,
    role: str,
    prefixes: tuple[str, ...],
    password_file: Path | None,
    password_stdin: bool,
    output: str,
    config: RegistryConfig,
) -> None:
    """Add the user NAME, or replace the one there is. Asks for the password on a terminal."""
    password = _password(password_file, password_stdin)
    arguments = {"name": name, "role": role, "prefixes": list(prefixes), "password": password}
    result = perform(config, "user add", arguments, creates=True)
    show_record(result, output, f"user {name}: {role}")


@user.command("list")
@OUTPUT
@with_data
def list_users(output: str, config: RegistryConfig) -> None:
    """List the users."""
    rows = list(pages(config, "user list", "users", {}))
    if output == "human":
        rows = [{**row, "created": when(row["created_at"])} for row in rows]
    show_rows(rows, ("name", "role", "prefixes", "created"), output)


@user.command()
@click.argument("name")
@OUTPUT
@with_data
def remove(name: str, output: str, config: RegistryConfig) -> None:
    """Remove the user NAME; passwords and tokens stop working at once."""
    result = perform(config, "user remove", {"name": name})
    show_record(result, output, f"user {name} removed")


def _password(file: Path | None, from_stdin: bool) -> str:
    """The password from where it was said to be, without the newline at its end; raises ConfigInvalid."""
    if file is not None and from_stdin:
        raise click.UsageError("--password-file and --password-stdin exclude each other: give one")
    if file is not None:
        with file.open("rb") as stream:
            return _decoded(stream.read(PASSWORD_FILE_BYTES + 1), f"--password-file {file}")
    if from_stdin:
        return _decoded(sys.stdin.buffer.read(PASSWORD_FILE_BYTES + 1), "--password-stdin")
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for a password on: give --password-file or --password-stdin")
    entered: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return entered


def _decoded(raw: bytes, source: str) -> str:
    if len(raw) > PASSWORD_FILE_BYTES:
        raise ConfigInvalid(f"{source} is longer than {PASSWORD_FILE_BYTES} bytes: that is no password")
    try:
        password = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{source} is not UTF-8 text: encode the password so") from None
    if not password:
        raise ConfigInvalid(f"{source} is empty: write the password into it")
    return password

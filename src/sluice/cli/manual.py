"""``docs/configuration.md``, written from the schema so that it cannot say anything else."""

from __future__ import annotations

from itertools import groupby

import click

from sluice.cli.options import default_text
from sluice.config import CONFIG_VARIABLE, LEAVES, Leaf, RegistryConfig

INTRODUCTION = f"""# Configuration

Every setting has one key. It can be given in a YAML file (`--config PATH` or `{CONFIG_VARIABLE}=PATH`), as an
environment variable or as a flag of `sluice serve`; a flag wins over a variable, a variable over the file, the file
over the default.

```yaml
# limits.manifest_bytes = SLUICE_LIMITS_MANIFEST_BYTES = --limits-manifest-bytes
listen: 0.0.0.0:5001
limits:
  manifest_bytes: 8MiB
```

- Sizes are bytes or `64KiB`, `4MiB`, `1GiB`. Durations are seconds or `30s`, `5m`, `24h`, `7d`.
- Addresses are `host:port`, with IPv6 in brackets: `[::1]:5001`.
- Lists are YAML lists in the file, separated by commas in a variable; the flag can be repeated.
- Switches are `true` or `false`; as flags `--log-access` and `--no-log-access`.
- An empty variable counts as unset. Unknown keys, wrong values and settings that contradict each other end `sluice`
  with exit code 2 and a line that names key, value, source and remedy.
- `upstream: ADDRESS` in the file is short for `upstream: {{address: ADDRESS}}`; so is `NAME: ADDRESS` in `registries`.
- The file is read again when it changes and on SIGHUP: `mode`, `upstream`, `registries` and `cache` take effect at once
  (`docs/modes.md`), the rest after a restart. Certificates, keys and CAs that it names are read again when they
  change.

This page is generated: `sluice config-docs > docs/configuration.md`.
"""


@click.command("config-docs", hidden=True)
def config_docs() -> None:
    """Print docs/configuration.md."""
    click.echo(manual(), nl=False)


def manual() -> str:
    """The whole page, in Markdown."""
    parts = [INTRODUCTION]
    for section, settings in groupby(LEAVES.values(), key=lambda leaf: leaf.key.rpartition(".")[0]):
        parts.append(_section(section, list(settings)))
    return "\n".join(parts)


def _section(name: str, settings: list[Leaf]) -> str:
    lines = [f"## {name or 'General'}", ""]
    if name:
        lines += [" ".join((type(getattr(RegistryConfig(), name)).__doc__ or "").split()), ""]
    lines += ["| Key | Default | Meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *map(_row, settings), ""])


def _row(leaf: Leaf) -> str:
    default = default_text(leaf)
    choices = f" ({', '.join(f'`{choice}`' for choice in leaf.choices)})" if len(leaf.choices) > 1 else ""
    return f"| `{leaf.key}` | {f'`{default}`' if default else ''} | {leaf.summary}{choices} |"

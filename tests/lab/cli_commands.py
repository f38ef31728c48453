"""The commands of the command line, for tests about all of them."""

from __future__ import annotations

import click

from spegel_consul.cli import COMMANDS, cli


def command(name: str) -> click.Command:
    """The command of this name."""
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


def commands() -> list[click.Command]:
    """All commands."""
    return [command(name) for name in COMMANDS]

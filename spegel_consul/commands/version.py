"""``spegel-consul version``: the versions of the program and of what its behaviour depends on most."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from spegel_consul import __version__


@click.command()
def version() -> None:
    """Print the version."""
    print_version()


def print_version() -> None:
    """Print the line of ``version`` and ``--version``. Trio's version is read without importing Trio."""
    trio = importlib.metadata.version("trio")
    click.echo(f"spegel-consul {__version__} (Python {platform.python_version()}, trio {trio})")

"""The commands of the command line, for tests about all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import click

from lab.process import HANG
from spegel_consul.cli import COMMANDS, cli


def command(name: str) -> click.Command:
    """The command of this name."""
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


def commands() -> list[click.Command]:
    """All commands."""
    return [command(name) for name in COMMANDS]


def as_process(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process, in the environment ``env``; None: in that of this process."""
    argv = [sys.executable, "-m", "spegel_consul", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=HANG, check=False)


def failure(*words: str, env: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and the one line of a command that fails."""
    done = as_process(*words, env=env)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr

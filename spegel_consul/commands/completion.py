"""``spegel-consul completion``: print a script for the completion of commands and flags in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    bash: source <(spegel-consul completion bash). zsh: the same. fish: spegel-consul completion fish | source
    """
    root = click.get_current_context().find_root().command
    found = get_completion_class(shell)
    assert found is not None
    script = found(root, {}, "spegel-consul", "_SPEGEL_CONSUL_COMPLETE").source()
    # click's script for fish drops a summary from its first comma on
    click.echo(script.replace('string split "," $completion', 'string split --max 1 "," $completion'))

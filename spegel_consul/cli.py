"""The command line: the group of all commands, and the one-line form of their errors.

An error is one line on standard error, because it is read in an allocation's log more often than on a terminal. A new
command is registered here.
"""

from __future__ import annotations

import platform
import signal

import click
import trio

from spegel_consul import __version__
from spegel_consul.commands.completion import completion
from spegel_consul.commands.configuration import cleanup, cleanup_wait, configuration
from spegel_consul.commands.dev import dev
from spegel_consul.commands.events import events
from spegel_consul.commands.leader import leader
from spegel_consul.commands.lookup import lookup
from spegel_consul.commands.peers import peers
from spegel_consul.commands.preflight import preflight
from spegel_consul.commands.preheat import preheat
from spegel_consul.commands.pull import pull
from spegel_consul.commands.registry import registry
from spegel_consul.commands.status import status

EXIT_USAGE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """A peer-to-peer image mirror for Nomad and Docker clusters, without a disk of its own."""


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"spegel-consul {__version__} (Python {platform.python_version()}, trio {trio.__version__})")


cli.add_command(registry)
cli.add_command(configuration)
cli.add_command(cleanup)
cli.add_command(cleanup_wait)
cli.add_command(preflight)
cli.add_command(dev)
cli.add_command(leader)
for command in (status, peers, lookup, pull, preheat, events, completion):
    cli.add_command(command)


def main() -> None:
    """The console script. An error is one line; docs/cli.md has the exit codes."""
    try:
        code = cli.main(standalone_mode=False, prog_name="spegel-consul")
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        raise SystemExit(EXIT_USAGE) from None
    except click.UsageError as exc:
        click.echo(f"spegel-consul: {exc.format_message()}", err=True)
        raise SystemExit(EXIT_USAGE) from None
    except click.ClickException as exc:
        click.echo(f"spegel-consul: {exc.format_message()}", err=True)
        raise SystemExit(exc.exit_code) from None
    except (click.Abort, KeyboardInterrupt):
        raise SystemExit(128 + signal.SIGINT) from None
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

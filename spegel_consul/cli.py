"""The command line: the group of all commands, and the one-line form of their errors.

A command's module is imported when the command is called, because a short command must not import the sidecar's
libraries. The help and the completion of the group itself know the commands by their names and summaries, which are
here. An error is one line on standard error, because it is read in an allocation's log more often than on a terminal. A
new command is registered here.
"""

from __future__ import annotations

import importlib
import signal
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from spegel_consul.lean.imports import without_collector

EXIT_USAGE = 2


class Registered(NamedTuple):
    """A command: its module in :mod:`spegel_consul.commands`, and the first sentence of its help."""

    module: str
    summary: str


COMMANDS = {
    "cleanup": Registered("configuration", "Restore the runtimes' configuration exactly as it was before."),
    "cleanup-wait": Registered("configuration", "Wait until the cleanup has been done on all nodes."),
    "completion": Registered("completion", "Print the completion script of a shell."),
    "configuration": Registered("configuration", "Point this node's runtimes at the mirrors."),
    "dev": Registered("dev", "Run a demonstration: three nodes on this machine, and a pull from one through another."),
    "events": Registered("events", "Show the last thousand events of a node, and new ones, until Ctrl-C."),
    "images": Registered("images", "List the images that a node has, or those that would be lost with a node."),
    "leader": Registered("leader", "Print the elected bootstrap peer."),
    "lookup": Registered("lookup", "List the nodes that have an image or a digest, and the time until each was found."),
    "peers": Registered("peers", "List the members of the ring as a node sees them, and those that only Consul knows."),
    "preflight": Registered("preflight", "Check this node's set-up for a mirror, and print the lines to change."),
    "preheat": Registered(
        "preheat", "Have the runtimes of all nodes pull an image at the same time, each through its own mirror."
    ),
    "pull": Registered("pull", "Pull an image through a node's mirror, verify every digest, and keep nothing."),
    "registry": Registered(
        "registry", "Run the sidecar: serve this node's content, and mirror other content from peers."
    ),
    "status": Registered("status", "Show a summary of a node: the ring, its content, its hit ratio, and its problems."),
    "top": Registered("top", "Show the nodes of the cluster and their transfers, the busiest first, until Ctrl-C."),
    "version": Registered("version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group of :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        with without_collector():
            module = importlib.import_module(f"spegel_consul.commands.{COMMANDS[cmd_name].module}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        own = [CompletionItem(name, help=COMMANDS[name].summary) for name in names]
        return own + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        from spegel_consul.commands.version import print_version

        print_version()
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """A peer-to-peer image mirror for Nomad and Docker clusters, without a disk of its own."""


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

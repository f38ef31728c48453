"""``spegel-consul dev``: a demonstration on one machine."""

from __future__ import annotations

import click
import trio


@click.command()
@click.option(
    "--once",
    is_flag=True,
    help="Exit after the pull, with 0 only if every layer came from a peer, or left the upstream once.",
)
@click.option("--port", type=click.IntRange(1024, 65000), default=5050, show_default=True, help="First port to use.")
@click.option("--size", type=click.IntRange(1, 4096), help="Size of the image in MiB.  [default: 16, with --herd 64]")
@click.option("--herd", is_flag=True, help="Six nodes that pull at the same time what only an upstream registry has.")
def dev(once: bool, port: int, size: int | None, herd: bool) -> None:
    """Run a demonstration: three nodes on this machine, and a pull from one through another."""
    from spegel_consul import dev as demonstration

    raise SystemExit(trio.run(demonstration.run, once, port, size or (64 if herd else 16), herd))

"""``spegel-consul preheat``: have the runtimes of many nodes pull an image before it is needed there."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.option_types import DURATION
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting

_STYLES = {"done": "green", "failed": "bold red", "left out": "yellow"}
_NARROW = 70


@click.command()
@click.argument("reference", metavar="IMAGE")
@click.option(
    "--nodes", type=click.IntRange(1, 999_999), default=None, help="How many nodes, the asked one among them."
)
@click.option("--all", "every", is_flag=True, help="All nodes of the ring; this is the default.")
@click.option(
    "--timeout", type=DURATION, default="10m", show_default=True, help="Time limit of the pulls, up to an hour."
)
@sidecar_client.asks
def preheat(reference: str, nodes: int | None, every: bool, timeout: float, node: str, as_json: bool) -> None:
    """Have the runtimes of all nodes pull an image at the same time, each through its own mirror.

    Run it on the machine of the sidecar that is asked; the nodes must be started with --preheat=peers. Exits 0 if all
    nodes that were asked have the image, 4 if no registry has it, 1 otherwise.
    """
    if every and nodes is not None:
        raise click.UsageError("give --nodes or --all, not both")
    count = str(nodes) if nodes is not None else "all"
    lines = sidecar_client.reports(node, "/api/preheat", image=reference, nodes=count, within=f"{timeout:g}")
    found, last = _watch(lines, quiet=as_json)
    rows = sorted(found.values(), key=lambda each: (str(each["node"]), str(each["id"])))
    if as_json and last:
        sidecar_client.print_json({**last, "nodes": rows})
    elif rows:
        _show(rows)
    if not last or not last["done"]:
        raise click.ClickException("the node ended the connection, or fell silent, before the preheat was over")
    if last["problem"]:
        raise click.ClickException(f"the preheat failed: {sidecar_client.printable(last['problem'])}")
    _judge(rows, sidecar_client.printable(str(last["image"])))


def _judge(rows: list[dict[str, Any]], image: str) -> None:
    """Raise the exit code's exception, unless all nodes have the image."""
    lacking = [row for row in rows if row["state"] != "done"]
    if not lacking:
        return
    if len(lacking) == len(rows) and all(row["missing"] for row in rows):
        raise sidecar_client.NotFound(f"no registry has {image}")
    raise click.ClickException(f"{len(lacking)} of {len(rows)} nodes do not have {image}")


def _watch(lines: Iterator[dict[str, Any]], *, quiet: bool) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The last state of each node by its id, and the last line; a terminal has the counts meanwhile."""
    found: dict[str, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    if quiet or not sys.stdout.isatty():
        for last in lines:
            _take(found, last)
        return found, last
    with sidecar_client.console().status("asking the nodes") as status:
        for last in lines:
            _take(found, last)
            states = Counter(str(each["state"]) for each in found.values())
            counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            status.update(f"{len(found)} nodes: {shown(counts)}")
    return found, last


def _take(found: dict[str, dict[str, Any]], line: dict[str, Any]) -> None:
    found.update((str(each["id"]), each) for each in line["nodes"])


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    console = sidecar_client.console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    wide = console.width >= _NARROW
    columns = ["node", "runtime", "state", "seconds", "bytes", "reason"] if wide else ["node", "state", "reason"]
    for column in columns:
        right = column in ("seconds", "bytes")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        for cells in _cells(row):
            table.add_row(*(cells[column] for column in columns))
    console.print(table)


def _cells(row: dict[str, Any]) -> Iterator[dict[str, str]]:
    """One row for each runtime of a node, or one for a node without."""
    for each in row["runtimes"] or [{**row, "runtime": "–", "seconds": None, "bytes": None}]:
        yield _line(row, each)


def _line(row: dict[str, Any], each: dict[str, Any]) -> dict[str, str]:
    state = str(each["state"])
    style = _STYLES.get(state)
    return {
        "node": shown(str(row["node"])),
        "runtime": shown(str(each["runtime"])),
        "state": f"[{style}]{shown(state)}[/]" if style else shown(state),
        "seconds": "–" if each["seconds"] is None else f"{each['seconds']:.1f}",
        "bytes": formatting.size(each["bytes"]),
        "reason": shown(str(each["reason"] or "")),
    }

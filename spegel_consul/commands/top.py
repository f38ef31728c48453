"""``spegel-consul top``: the nodes of the cluster and their transfers, in a table that is renewed.

The asked node collects the summaries of all others, and reuses them for some seconds
(:mod:`spegel_consul.web.cluster`), so a command that runs for long costs the cluster no more than a page that is open.
Busy nodes come first, because a terminal has no room for a thousand.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PATH = "/api/cluster"
_TIMEOUT = 20.0  # a round of questions takes up to 8 s, and may begin after another one
_ROOM = 9  # lines of the screen that are not rows
_MOST_TRANSFERS = 200
_NARROW = 100


@click.command()
@click.option("--once", is_flag=True, help="Print the tables once, with all rows, and exit; so in a pipe.")
@click.option(
    "--every", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds between looks."
)
@sidecar_client.asks
def top(once: bool, every: float, node: str, as_json: bool) -> None:
    """Show the nodes of the cluster and their transfers, the busiest first, until Ctrl-C.

    Exits 3 if the asked node does not answer at the first look; later it is waited for.
    """
    found = sidecar_client.get(node, _PATH, timeout=_TIMEOUT)
    if as_json:
        sidecar_client.print_json(found)
    elif once or not sys.stdout.isatty():
        for part in _parts(found, sys.maxsize, _wide()):
            sidecar_client.console().print(part)
    else:
        _watch(node, found, every)


def _watch(node: str, found: dict[str, Any], every: float) -> None:
    from rich.console import Group
    from rich.live import Live

    console, problem = sidecar_client.console(), ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            note = [f"[yellow]{shown(problem)}[/]"] if problem else []
            live.update(Group(*note, *_parts(found, max(1, console.height - _ROOM), _wide())), refresh=True)
            time.sleep(every)
            try:
                found, problem = sidecar_client.get(node, _PATH, timeout=_TIMEOUT), ""
            except sidecar_client.Unreachable as exc:
                problem = f"{exc.format_message()}; what is shown is the last answer"


def _wide() -> bool:
    return sidecar_client.console().width >= _NARROW


def _parts(found: dict[str, Any], room: int, wide: bool) -> Iterator[RenderableType]:
    """The headline, the table of nodes, and that of transfers, in about ``room`` lines."""
    nodes, day = found["nodes"], found["day"]
    leader = next(iter(found["leaders"]), None)
    alarms = f"[bold red]{found['alarmed']} with an alarm[/]" if found["alarmed"] else "[green]no alarm[/]"
    yield (
        f"[bold]{found['answered']}[/] of {len(nodes)} nodes answered, {alarms}, leader {shown(leader or 'none')}\n"
        f"saved [bold]{formatting.size(day['bytes_from_peers'])}[/] from the registry in 24 h:"
        f" {formatting.share(day['hits'] / day['requests'] if day['requests'] else None)}"
        f" of {formatting.number(day['requests'])} requests came from neighbours"
    )
    transfers = [(node["node"], each) for node in nodes if node["summary"] for each in node["summary"]["transfers"]]
    transfers.sort(key=lambda each: -each[1]["rate"])
    listed = min(len(transfers), _MOST_TRANSFERS, max(3, room // 2))
    rows = max(1, room - (listed + 2 if listed else 0))
    yield _node_table(sorted(nodes, key=_busy)[:rows], wide)
    if len(nodes) > rows:
        yield f"[dim]and {len(nodes) - rows} more: see --once[/]"
    if listed:
        yield _transfer_table(transfers, listed)


def _busy(node: dict[str, Any]) -> tuple[bool, int, bool, str]:
    """The order of the nodes: with transfers, the most bytes a second, with an alarm."""
    said = node["summary"] or {"transfers": (), "follows": ()}
    rate = sum(each["rate"] for each in said["transfers"])
    return not (said["transfers"] or said["follows"]), -rate, not node["alarms"], str(node["node"])


def _node_table(nodes: list[dict[str, Any]], wide: bool) -> Table:
    figures = ["images", "saved 24h", "hits"]
    about = ["version", "zone"] if wide else []
    columns = ["node", "state", *figures, *about, "in", "followers", "alarm"]
    table = _table(columns, {*figures, "in", "followers"})
    for node in nodes:
        said = node["summary"]
        name = shown(formatting.elided(str(node["node"]), 40)) + (" [yellow]leader[/]" if node["leader"] else "")
        alarm = f"[red]{shown(formatting.elided(node['alarms'][0], 90))}[/]" if node["alarms"] else ""
        if said is None:
            state = node["state"] if node["state"] != "alive" else "no answer"
            table.add_row(name, f"[red]{shown(state)}[/]", *[""] * (len(columns) - 3), alarm)
            continue
        requests = said["day_hits"] + said["day_misses"]
        rate = sum(each["rate"] for each in said["transfers"])
        table.add_row(
            name,
            "[green]ready[/]" if said["ready"] else "[bold red]not ready[/]",
            formatting.number(said["image_count"]),
            formatting.size(said["day_bytes"]),
            formatting.share(said["day_hits"] / requests if requests else None),
            *([shown(said["version"]), shown(said["zone"] or "–")] if wide else []),
            f"{said['transfer_count']} at {formatting.speed(rate)}" if said["transfer_count"] else "–",
            formatting.number(said["followers"]),
            alarm,
        )
    return table


def _transfer_table(transfers: list[tuple[str, dict[str, Any]]], listed: int) -> Table:
    table = _table(["to", "from", "content", "done", "speed"], {"done", "speed"})
    for name, each in transfers[:listed]:
        table.add_row(
            shown(formatting.elided(name, 30)),
            shown(formatting.elided(each["peer"] or "no peer yet", 30)),
            shown(formatting.image(each["image"], 50)),
            formatting.part(each["bytes"], each["size"]),
            formatting.speed(each["rate"]),
        )
    return table


def _table(columns: list[str], right: set[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        is_right = column in right
        table.add_column(column, justify="right" if is_right else "left", overflow="fold", no_wrap=is_right)
    return table

"""``spegel-consul images``: the images that a node has, and those that too few nodes have."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting

_COUNT_WITHIN, _ALL_WITHIN = 60.0, 600.0  # seconds; of all nodes, 64 are asked at a time, which have half a minute
_MOST_COPIES = 20


@click.command()
@click.option(
    "--fewer-than",
    type=click.IntRange(2, _MOST_COPIES),
    default=None,
    metavar="N",
    help="Only images that fewer than N nodes have, with the nodes that have them.",
)
@click.option("--all", "every", is_flag=True, help="The images of all nodes, not only of the asked one.")
@sidecar_client.asks
def images(fewer_than: int | None, every: bool, node: str, as_json: bool) -> None:
    """List the images that a node has, or those that would be lost with a node.

    With --fewer-than, exits 1 if a node could not be asked.
    """
    if fewer_than is None:
        if every:
            raise click.UsageError("--all needs --fewer-than")
        _list(sidecar_client.get(node, "/api/images"), as_json)
        return
    method, within = ("POST", _ALL_WITHIN) if every else ("GET", _COUNT_WITHIN)
    found = sidecar_client.get(node, "/api/copies", method=method, timeout=within, **{"fewer": str(fewer_than)})
    if as_json:
        sidecar_client.print_json(found)
    else:
        _show(found, fewer_than)
    failed = found.get("failed", [])
    for each in failed:
        click.echo(sidecar_client.printable(f"{each['node']}: {each['problem']}"), err=True)
    if failed:
        raise click.ClickException(f"{len(failed)} of {found['asked']} nodes could not be asked for their images")


def _list(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        sidecar_client.print_json(found)
        return
    table = _table("image", "size")
    for image in found:
        table.add_row(shown(image["name"]), formatting.size(image["size"]))
    sidecar_client.console().print(table)


def _show(found: dict[str, Any], fewer_than: int) -> None:
    rows = found["images"]
    if found.get("last"):
        click.echo(
            "the nodes answered from their last counts, because there are so many; each counts every ten minutes",
            err=True,
        )
    if found.get("left_out"):
        click.echo(f"{found['left_out']} images were not counted, because the node has so many", err=True)
    if found.get("unknown"):
        click.echo(f"{found['unknown']} images could not be looked up", err=True)
    if not rows:
        click.echo(f"no image is on fewer than {fewer_than} nodes")
        return
    table = _table("image", "size", "nodes")
    lost: Counter[str] = Counter()
    for image in rows:
        names = [shown(each["node"] or f"…{each['id'][-8:]}") for each in image["nodes"]]
        table.add_row(shown(image["name"]), formatting.size(image["size"]), ", ".join(names))
        if len(names) == 1:
            lost[names[0]] += 1
    console = sidecar_client.console()
    console.print(table)
    for name, count in sorted(lost.items()):
        console.print(f"{count} {'image is' if count == 1 else 'images are'} on {name} only, and would be lost with it")
    name = sidecar_client.printable(rows[0]["name"])
    click.echo(f"to mend it, have more nodes pull each image: spegel-consul preheat {name} --nodes {fewer_than}")


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    return table

"""``spegel-consul lookup``: the nodes that have an image or a digest, as a table."""

from __future__ import annotations

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting


@click.command()
@click.argument("key", metavar="REF|DIGEST")
@sidecar_client.asks
def lookup(key: str, node: str, as_json: bool) -> None:
    """List the nodes that have an image or a digest, and the time until each was found.

    Exits 4 if no node has it.
    """
    found = sidecar_client.get(node, "/api/lookup", key=key)
    if as_json:
        sidecar_client.print_json(found)
    else:
        from rich.table import Table

        console = sidecar_client.console()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("node", "registry", "found after"):
            table.add_column(column, justify="right" if column == "found after" else "left", overflow="fold")
        if found["own"]:
            table.add_row("[bold]this node[/]", "–", "–")
        for provider in found["providers"]:
            name = shown(provider["node"] or f"…{provider['id'][-8:]}")
            table.add_row(name, shown(provider["registry"]), formatting.milliseconds(provider["ms"]))
        if table.row_count:
            console.print(table)
        if found["problem"]:
            console.print(f"[yellow]{shown(found['problem'])}[/]")
    if not found["own"] and not found["providers"]:
        took = formatting.milliseconds(found["ms"])
        raise sidecar_client.NotFound(f"no node has {found['key']} (the lookup took {took})")

"""``spegel-consul lookup``: who has it?"""

from __future__ import annotations

import click
from rich.table import Table

from spegel_consul.commands import ask
from spegel_consul.commands.ask import shown
from spegel_consul.web import words


@click.command()
@click.argument("key", metavar="REF|DIGEST")
@ask.asks
def lookup(key: str, node: str, as_json: bool) -> None:
    """Ask the ring who has an image or a digest, and how long it took to find out.

    Exits 4 if nobody has it.
    """
    found = ask.get(node, "/api/lookup", key=key)
    if as_json:
        ask.print_json(found)
    else:
        console = ask.console()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("node", "registry", "found after"):
            table.add_column(column, justify="right" if column == "found after" else "left", overflow="fold")
        if found["own"]:
            table.add_row("[bold]this node[/]", "–", "–")
        for provider in found["providers"]:
            name = shown(provider["node"] or f"…{provider['id'][-8:]}")
            table.add_row(name, shown(provider["registry"]), words.milliseconds(provider["ms"]))
        if table.row_count:
            console.print(table)
        if found["problem"]:
            console.print(f"[yellow]{shown(found['problem'])}[/]")
    if not found["own"] and not found["providers"]:
        raise ask.NotFound(f"nobody has {found['key']} (asked for {words.milliseconds(found['ms'])})")

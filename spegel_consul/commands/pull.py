"""``spegel-consul pull``: a trial pull through the mirror, which keeps nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting

_NARROW = 70


@click.command()
@click.argument("reference", metavar="REF")
@sidecar_client.asks
def pull(reference: str, node: str, as_json: bool) -> None:
    """Pull an image through a node's mirror, verify every digest, and keep nothing.

    Shows the source and the speed of each part. Exits 0 if the image is whole, 4 if no node has it, 1 if the pull
    broke off.
    """
    last: dict[str, Any] = {}
    lines = sidecar_client.reports(node, "/api/measure", image=reference)
    if as_json:
        last = [{}, *lines][-1]
        if last:
            sidecar_client.print_json(last)
    else:
        last = _watch(lines)
    if not last or not last["done"]:
        raise click.ClickException("the node ended the connection, or fell silent, before the pull was over")
    if last["problem"]:
        raise (sidecar_client.NotFound if last["missing"] else click.ClickException)(
            sidecar_client.printable(last["problem"])
        )


def _watch(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    console = sidecar_client.console()
    last: dict[str, Any] = {}
    wide = console.width >= _NARROW
    bar = [BarColumn(bar_width=None if wide else 8)] if sys.stdout.isatty() else []
    columns = (TextColumn("{task.fields[what]}"), *bar, TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, expand=wide, disable=not sys.stdout.isatty()) as progress:
        tasks: dict[str, TaskID] = {}
        for last in lines:
            for piece in last["pieces"]:
                if piece["digest"] not in tasks:
                    tasks[piece["digest"]] = progress.add_task("", what=piece["what"], note="", total=piece["size"])
                note = _note(piece, wide)
                progress.update(tasks[piece["digest"]], completed=piece["received"], note=note, what=piece["what"])
    if not sys.stdout.isatty():
        for piece in last.get("pieces", ()):
            console.print(f"{piece['what']:<10} {_note(piece, True)}")
    if last.get("done") and not last["problem"]:
        speed = formatting.speed(last["bytes_per_second"])
        console.print(
            f"[green]whole[/]: {formatting.size(last['bytes'])} in {formatting.milliseconds(last['ms'])}, {speed}"
        )
    return last


def _note(piece: dict[str, Any], wide: bool) -> str:
    source = shown(piece["source_node"] or piece["source"] or "…")
    if not piece["verified"]:
        return f"{formatting.size(piece['received'])} from {source}"
    speed = f" {formatting.speed(piece['bytes_per_second']):>12}" if wide else ""
    digest = f"  {formatting.short(piece['digest'])}" if wide else ""
    return f"{formatting.size(piece['size']):>9}{speed}  {source}{digest}"

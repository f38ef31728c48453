"""``spegel-consul peers``: the members of the ring, as a table."""

from __future__ import annotations

from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import formatting

_STYLES = {"self": "bold", "alive": "green", "dead": "red", "missing": "red"}
_ENCRYPTED: dict[object, str] = {True: "yes", False: "[yellow]no[/]"}
_NARROW = 80


@click.command()
@sidecar_client.asks
def peers(node: str, as_json: bool) -> None:
    """List the members of the ring as a node sees them, and those that only Consul knows.

    States: self, alive, dead (does not answer), missing (healthy in Consul's catalog, not in the ring).
    """
    found = sidecar_client.get(node, "/api/peers")
    if as_json:
        sidecar_client.print_json(found)
        return
    from rich.table import Table

    console = sidecar_client.console()
    columns = ["node", "state", "rtt", "keys", "seen"]
    if console.width >= _NARROW:
        columns += ["registry", "version"]
    if _encrypts(node, found):
        columns.append("encrypted")
    if any(peer.get("place") for peer in found):
        columns.append("place")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column in ("rtt", "keys", "seen")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for peer in found:
        cells = _cells(peer)
        table.add_row(*(cells[column] for column in columns))
    console.print(table)


def _encrypts(node: str, found: list[dict[str, Any]]) -> bool:
    """Whether the node encrypts to peers that can, even if none of them does."""
    if any(peer.get("encrypted") for peer in found):
        return True
    return sidecar_client.get(node, "/api/status").get("peer_tls") is not None


def _cells(peer: dict[str, Any]) -> dict[str, str]:
    style = _STYLES.get(peer["state"], "")
    return {
        "node": shown(peer["node"] or f"…{peer['id'][-8:]}") + (" [yellow]leader[/]" if peer["leader"] else ""),
        "state": f"[{style}]{peer['state']}[/]" if style else shown(peer["state"]),
        "rtt": formatting.milliseconds(peer["rtt_ms"]),
        "keys": "–" if peer["keys"] is None else str(peer["keys"]),
        "seen": "–" if peer["state"] == "self" else formatting.seconds(peer["last_seen"]),
        "registry": shown(peer["registry"] or "–"),
        "version": shown(peer["version"] or "–"),
        "place": shown((peer.get("place") or "–").rstrip("/")),
        "encrypted": _ENCRYPTED.get(peer.get("encrypted"), "–"),
    }

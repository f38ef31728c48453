"""``spegel-consul events``: print the events of a node as they happen, also across its restart."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown

_LONG_POLL = 25.0  # seconds
_RETRY_AFTER = 1.0  # seconds
_STYLES = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red", "critical": "bold red"}
_KNOWN = frozenset({"number", "event", "level", "timestamp"})


@click.command()
@click.option("--no-follow", is_flag=True, help="Print the last events and exit.")
@click.option("--since", type=click.IntRange(0), default=0, help="Only events after this number.")
@sidecar_client.asks
def events(no_follow: bool, since: int, node: str, as_json: bool) -> None:
    """Show the last thousand events of a node, and new ones, until Ctrl-C.

    Debug events are among them while the node logs them: see the log's level in `docs/cli.md`. With --json each event
    is one line. If the node restarts, the command waits for it, and a line on standard error says so.
    """
    life, gone = "", False
    while True:
        wait = 0.0 if no_follow or not life or gone else _LONG_POLL
        try:
            found = sidecar_client.get(
                node, "/api/events", timeout=wait + sidecar_client.TIMEOUT, since=str(since), wait=str(wait), life=life
            )
        except sidecar_client.Unreachable as exc:
            if not life or no_follow:
                raise
            if not gone:
                click.echo(f"spegel-consul: {exc.format_message()}; waiting for it", err=True)
            gone = True
            time.sleep(_RETRY_AFTER)
            continue
        if gone:
            click.echo(f"spegel-consul: {node} answers again", err=True)
        life, gone = str(found.get("life") or "unknown"), False
        for event in found["events"]:
            _show(event, as_json)
        since = found["last"]
        if no_follow:
            return


def _show(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event))
        return
    level = str(event.get("level", "info"))
    at = str(event.get("timestamp", ""))[11:19]
    details = " ".join(f"{name}={_value(value)}" for name, value in event.items() if name not in _KNOWN)
    style = _STYLES.get(level, "white")
    sidecar_client.console().print(
        f"[dim]{shown(at)}[/] [{style}]{shown(level)}[/] {shown(str(event.get('event')))} [dim]{shown(details)}[/]"
    )


def _value(value: object) -> str:
    """The value in one line, because a peer may have put line breaks into it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)

"""``spegel-consul leader``: print the elected bootstrap peer.

The command reads the key once. A lock without a readable record is printed with its problem, because another program
has overwritten the record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click
import trio

from spegel_consul.commands.consul_options import leader_key
from spegel_consul.commands.sidecar_client import print_hanging
from spegel_consul.consul.api.client import ConsulClient, KVEntry
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.election.leader_record import LeaderRecord

EXIT_VACANT = 3


@click.command()
@leader_key
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def leader(consul_leader_key: str, as_json: bool) -> None:
    """Print the elected bootstrap peer. Exits 3 if no session holds the lock, 1 if Consul does not answer.

    Consul's address and credentials come from CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of its tools.
    """
    try:
        entry = trio.run(_read, ConsulSettings.from_env(os.environ), consul_leader_key)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    except ConsulError as exc:
        raise click.ClickException(f"{consul_leader_key}: {exc}") from None
    found = _describe(consul_leader_key, entry)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_hanging(_lines(found))
    if found["state"] == "vacant":
        raise SystemExit(EXIT_VACANT)


async def _read(settings: ConsulSettings, key: str) -> KVEntry | None:
    async with ConsulClient(settings) as client:
        _, entry = await client.kv_get(key)
        return entry


def _describe(key: str, entry: KVEntry | None) -> dict[str, Any]:
    if entry is None or entry.session is None:
        return {"state": "vacant", "key": key}
    record = LeaderRecord.parse(entry.value)
    told = record.known() if record is not None else {"problem": "the value is not a leader's record"}
    return {"state": "held", "key": key, **told, "session": entry.session, "epoch": entry.modify_index}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if found["state"] == "vacant":
        yield "", f"vacant: no session holds {found['key']}"
        return
    yield "", str(found.get("node") or found.get("peer_id") or found["problem"])
    for name in ("peer_id", "addrs", "registry", "http", "version", "since", "alloc_id", "session", "epoch", "key"):
        value = found.get(name)
        if value is not None:
            yield f"  {name:9} ", " ".join(value) if isinstance(value, list) else str(value)

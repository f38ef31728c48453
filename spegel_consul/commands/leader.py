"""``spegel-consul leader``: print the elected bootstrap peer.

The command reads the lock once: Consul's key or Nomad's variable, by which the sidecar elects with the same kinds of
bootstrap. A lock without a readable record is printed with its problem, because another program has overwritten the
record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click
import trio

from spegel_consul.commands.lock_options import leader_key, nomad_variable
from spegel_consul.commands.option_types import BOOTSTRAP_KINDS, kinds_of, option
from spegel_consul.commands.sidecar_client import print_hanging
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import LockEntry, LockError
from spegel_consul.join.bootstrap_kind import BootstrapKind, elector

EXIT_VACANT = 3


@click.command()
@option(
    "--bootstrap-kind",
    type=BOOTSTRAP_KINDS,
    multiple=True,
    default=("consul",),
    show_default="consul",
    help="As for registry; the first of consul and nomad-var says where the lock is.",
)
@leader_key
@nomad_variable
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def leader(
    bootstrap_kind: tuple[tuple[BootstrapKind, ...], ...], consul_leader_key: str, nomad_variable: str, as_json: bool
) -> None:
    """Print the elected bootstrap peer. Exits 3 if no session holds the lock, 1 if Consul or Nomad does not answer.

    Consul's address and credentials come from CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the other variables of its tools,
    those of Nomad from NOMAD_ADDR, NOMAD_TOKEN and the like.
    """
    key = consul_leader_key
    try:
        match elector(kinds_of(bootstrap_kind)):
            case BootstrapKind.NOMAD_VAR:
                key = nomad_variable
                entry = trio.run(_read_variable, key)
            case BootstrapKind.CONSUL:
                entry = trio.run(_read_key, ConsulSettings.from_env(os.environ), key)
            case _:
                raise ValueError("--bootstrap-kind: only consul and nomad-var elect a leader, and neither was given")
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    except LockError as exc:
        raise click.ClickException(f"{key}: {exc}") from None
    found = _describe(key, entry)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        print_hanging(_lines(found))
    if found["state"] == "vacant":
        raise SystemExit(EXIT_VACANT)


async def _read_key(settings: ConsulSettings, key: str) -> LockEntry | None:
    async with ConsulClient(settings) as client:
        _, entry = await client.kv_get(key)
        return entry


async def _read_variable(path: str) -> LockEntry | None:
    from spegel_consul.join.sources.nomad_api import NomadClient, NomadSettings
    from spegel_consul.join.sources.nomad_lock import NomadLock

    async with NomadClient(NomadSettings.from_env(os.environ)) as client:
        _, entry = await NomadLock(client, path).read(0, 0.0, consistent=True)
        return entry


def _describe(key: str, entry: LockEntry | None) -> dict[str, Any]:
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

"""``spegel-consul status``: a summary of one node."""

from __future__ import annotations

import time
from typing import Any

import click

from spegel_consul.commands import sidecar_client
from spegel_consul.commands.sidecar_client import shown
from spegel_consul.web import forest, formatting

_MOST = 5  # downloads, and followers of one, that are shown


@click.command()
@sidecar_client.asks
def status(node: str, as_json: bool) -> None:
    """Show a summary of a node: the ring, its content, its hit ratio, and its problems.

    Exits 0 if the node is ready, 5 if not, 3 if no sidecar answers.
    """
    found = sidecar_client.get(node, "/api/status")
    if as_json:
        sidecar_client.print_json(found)
    else:
        _show(found)
    if not found["ready"]:
        raise click.exceptions.Exit(sidecar_client.EXIT_NOT_READY)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    console = sidecar_client.console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(found):
        table.add_row(name, value)
    console.print(table)
    for reason in found["reasons"]:
        console.print(f"[bold red]not ready:[/] {shown(reason)}")
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/] {shown(warning)}")
    for each in found["transfers"]:
        peer = each["peer_node"] or each["peer"] or "no peer yet"
        done = f"{formatting.size(each['bytes'])} of {formatting.size(each['size'])}"
        speed = formatting.speed(each["bytes_per_second"])
        console.print(f"transfer: {shown(formatting.image(each['reference']))}, {done} from {shown(peer)}, {speed}")
    for line in _follow_lines(found):
        console.print(shown(line))


def _follow_lines(found: dict[str, Any]) -> list[str]:
    """The downloads that nodes share; none from a node of an older version, whose answer lacks them."""
    trees = forest.trees(found.get("following", []), found.get("followers", []))
    lines = []
    for tree in trees[:_MOST]:
        left = f", {tree.left}" if tree.left else ""
        lines.append(f"{formatting.image(tree.image)}: {tree.text}{left}")
        lines += [f"  followed by {each.name}: {each.text}" for each in tree.followers[:_MOST]]
        if len(tree.followers) > _MOST:
            lines.append(f"  and by {len(tree.followers) - _MOST} more")
    if len(trees) > _MOST:
        lines.append(f"and {len(trees) - _MOST} more downloads: see --json")
    return lines


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    node, ring, mirror, content = found["node"], found["ring"], found["mirror"], found["content"]
    ready = "[green]ready[/]" if found["ready"] else "[bold red]not ready[/]"
    if ring["catalog"]:
        coverage = f", {formatting.share(ring['coverage'])} of the catalog's {ring['catalog']}"
        split = f", [bold red]split: {len(ring['missing'])} missing[/]" if ring["split"] else ""
    else:
        coverage = split = ""
    served = f"{formatting.size(mirror['bytes_from_peers'])} from peers, {formatting.size(mirror['bytes_own'])} own"
    if mirror.get("bytes_followed"):
        served += f"; {formatting.size(mirror['bytes_followed'])} came from nodes still downloading"
    if mirror.get("bytes_crossed"):
        served += f"; {formatting.size(mirror['bytes_crossed'])} came from other zones"
    trouble = [
        f"{mirror[name]} {what}"
        for name, what in (("verification_failures", "with wrong bytes"), ("cut", "cut"), ("stalls", "stalled"))
        if mirror[name]
    ]
    return [
        ("node", f"[bold]{shown(node['name'])}[/], {ready}, up {formatting.seconds(node['uptime'])}"),
        ("version", shown(node["version"])),
        ("registry", f"{shown(node['registry'])} ({shown(node['store'])})"),
        *([("place", shown(node["place"].rstrip("/")))] if node.get("place") else []),
        *_encryption(found.get("peer_tls")),
        ("leader", _leader(found["leader"])),
        ("ring", f"{ring['members'] + 1} members{coverage}{split}"),
        ("content", f"{content['images']} images, {formatting.size(content['bytes'])}"),
        ("announced", f"{content['keys']} keys"),
        ("mirrored", f"{mirror['hits']} hits, {mirror['misses']} misses ({formatting.share(mirror['hit_ratio'])})"),
        ("sent", served),
        *_uploads(found.get("uploads")),
        ("last success", formatting.ago(mirror["last_success"])),
        *([("trouble", f"[yellow]{', '.join(trouble)}[/]")] if trouble else []),
        ("transfers", str(len(found["transfers"]))),
    ]


def _uploads(uploads: dict[str, Any] | None) -> list[tuple[str, str]]:
    """``uploads``: as in the API; None from an older node."""
    if uploads is None or not (uploads["streams"] or uploads["most"]):
        return []
    most = f" of {uploads['most']}" if uploads["most"] else ""
    refused = f", {uploads['refused']} refused as busy" if uploads["refused"] else ""
    return [("uploads", f"{uploads['streams']}{most} bodies to peers{refused}")]


def _encryption(peer_tls: dict[str, Any] | None) -> list[tuple[str, str]]:
    if peer_tls is None:
        return []
    expires = peer_tls["expires"]
    until = f", certificate for {formatting.seconds(expires - time.time())} more" if expires is not None else ""
    kernel = ", files by the kernel" if peer_tls.get("kernel") else ""
    return [("encryption", f"{shown(peer_tls['mode'])}{until}{kernel}")]


def _leader(leader: dict[str, Any] | None) -> str:
    if leader is None:
        return "none: nothing is elected"
    name = shown(leader["node"] or leader["peer_id"] or "unknown")
    since = f", since {shown(leader['since'])}" if leader["since"] else ""
    return (
        f"{name}{' (this node)' if leader['me'] else ''}{since}{'' if leader['fresh'] else ', [yellow]last known[/]'}"
    )

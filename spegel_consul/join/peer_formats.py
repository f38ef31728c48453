"""Peers from text: multiaddrs, ``host:port``, Spegel's JSON, a leader's record.

People, templates and other programs name peers.  So the form of the text may vary, and its content is checked strictly:
an address that can't be dialled is named in an error or left out, never passed on.

A new form of a list of peers belongs here.  The form of an address belongs to ``spegel_consul.multiaddrs``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from spegel_consul.multiaddrs import Address, parse, split_peer_id
from spegel_consul.peers import PeerInfo, is_peer_id

MAX_BYTES = 64 << 10
"""Longest document in bytes; three peers need about one thousand."""

FIRST = 3
"""Number of peers of an answer that are used, as in Spegel; one that answers is enough."""

_HOST_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):([0-9]+)")


def parse_peer(text: str) -> tuple[str | None, str]:
    """The peer id or None, and the router's multiaddr without the id. Raises ValueError."""
    text = text.strip()
    router, peer_id = split_peer_id(text if text.startswith("/") else _from_host_port(text))
    address = parse(router)
    if address is None or address.http:
        raise ValueError(f"bootstrap peer {text!r}: not /ip4/<address>/tcp/<port>[/p2p/<id>] or <host>:<port>")
    if peer_id is not None and not is_peer_id(peer_id):
        raise ValueError(f"bootstrap peer {text!r}: {peer_id!r} is not a peer id in base58, such as 12D3KooW…")
    return peer_id, router


def parse_peers(texts: Iterable[str]) -> tuple[PeerInfo, ...]:
    """The peers without an id, then one peer per id. Raises ValueError for the first text that can't be read."""
    known: dict[str, list[str]] = {}
    peers: list[PeerInfo] = []
    for text in texts:
        peer_id, router = parse_peer(text)
        if peer_id is None:
            peers.append(PeerInfo(None, (router,)))
        elif router not in known.setdefault(peer_id, []):
            known[peer_id].append(router)
    return (*peers, *(PeerInfo(peer_id, tuple(routers)) for peer_id, routers in known.items()))


def parse_document(body: bytes) -> tuple[PeerInfo, ...]:
    """The first three peers of a document; empty if it is an empty list or has no line.

    A document is JSON of Spegel's ``/id`` (``[{"ID": "12D3…", "Addrs": ["/ip4/…"]}]``, ``ID`` may be missing), JSON of
    the leader key (``{"peer_id": …, "addrs": […]}``), or lines of multiaddrs or ``host:port``, with ``#`` before
    remarks. Raises ValueError for other documents.
    """
    if len(body) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES >> 10} KiB: not a list of peers")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ValueError("not text: not a list of peers") from None
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(text)[:FIRST]
    if text.lstrip().startswith("<"):
        raise ValueError("a web page, not a list of peers")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return parse_peers(line for line in lines if line)[:FIRST]


def _from_json(text: str) -> tuple[PeerInfo, ...]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as why:
        raise ValueError(f"not complete JSON ({str(why)[:80]})") from None
    entries = document if isinstance(document, list) else [document]
    peers = tuple(peer for peer in map(_from_entry, entries) if peer is not None)
    if entries and not peers:
        raise ValueError("JSON without a usable peer: expected objects with ID and Addrs")
    return peers


def _from_entry(entry: Any) -> PeerInfo | None:
    if not isinstance(entry, dict) or entry.get("state", "held") != "held":
        return None
    given = entry.get("Addrs", entry.get("addrs"))
    peer_id = entry.get("ID", entry.get("peer_id"))
    routers = []
    for address in given if isinstance(given, list) else ():
        if isinstance(address, str):
            try:
                routers.append(parse_peer(address)[1])
            except ValueError:
                continue
    return PeerInfo(_id(peer_id), tuple(dict.fromkeys(routers))) if routers else None


def _id(text: object) -> str | None:
    """``text`` if it is a peer id; else None, so that the peer is dialled by its address and its id is learnt."""
    return text if isinstance(text, str) and is_peer_id(text) else None


def _from_host_port(text: str) -> str:
    shape = _HOST_PORT.fullmatch(text)
    if shape is None:
        raise ValueError(f"bootstrap peer {text!r}: not <host>:<port> (IPv6 in brackets) or a multiaddr")
    return str(Address(shape[1] or shape[2], int(shape[3])))


def one_line(text: str, limit: int = 120) -> str:
    """``text`` as one line for people, cut to ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."

"""The senders of requests that may have this node's runtimes pull an image.

A program on this machine may. A peer has to prove that it belongs to the cluster by something that the cluster has:

* With ``--basic-auth-file`` by the password. The metrics port is not encrypted, so the password itself is not sent: the
  header has a proof of it (HMAC-SHA256), for this node, this image and this minute.
* Without, by the address that the request comes from: that of a member of the ring or of an instance in the catalog.
  With ``--peer-policy=catalog`` the catalog alone counts, because anybody who reaches a router can become a member.

A request of another site's page and one that came through a proxy are refused. A new rule about who may belongs here.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterator

from quart import request

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.multiaddrs import parse
from spegel_consul.peers import unmapped
from spegel_consul.web.access import request_origin
from spegel_consul.web.node_views import Node, PreheatRules

HEADER = "X-Spegel-Preheat"
_CLOCKS_APART = 60.0  # seconds
_VALUE = re.compile(r"(\d{1,12}) ([0-9a-f]{64})\Z", re.ASCII)
OFF = "this node takes no part in preheats: start its sidecar with --preheat=peers"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def refusal_of_asker() -> str | None:
    """Why the present request may not begin a preheat of the cluster, in one line; None if it may."""
    if request_origin.from_another_site():
        return "a page of another site asked for this preheat"
    if not request_origin.from_this_machine():
        return "a preheat of the cluster is begun on the machine of the sidecar that is asked: run the command there"
    return None


def refusal(node: Node, rules: PreheatRules, image: str) -> str | None:
    """Why the present request may not have this node pull ``image``, in one line; None if it may."""
    if request_origin.from_another_site():
        return "a page of another site asked for this preheat"
    if request_origin.from_this_machine():
        return None
    if node.credentials is not None:
        return _unproven(node.credentials, node.ring.me.id or "", image)
    address = request_origin.client_address()
    if address is None:
        return "the request came through a proxy"
    if address not in set(_known(node, rules)):
        where = "Consul's catalog" if rules.catalog_only else "the ring or in Consul's catalog"
        return f"{address} is not the address of a node in {where}"
    return None


def proof(credentials: Credentials | None, peer_id: str, image: str) -> dict[str, str]:
    """The header fields of a request that has the peer pull ``image``."""
    if credentials is None:
        return {}
    now = int(time.time())
    return {HEADER: f"{now} {credentials.proof(_message(now, peer_id, image))}"}


def _unproven(credentials: Credentials, peer_id: str, image: str) -> str | None:
    found = _VALUE.match(request.headers.get(HEADER, ""))
    if found is None:
        return "the sender does not prove that it knows a password of this node's --basic-auth-file"
    at = int(found[1])
    if not credentials.proves(_message(at, peer_id, image), found[2]):
        return "the sender proves another password than those of this node's --basic-auth-file"
    if abs(time.time() - at) > _CLOCKS_APART:
        return f"the clocks of the sender and of this node are {abs(time.time() - at):.0f} s apart: at most 60 s"
    return None


def _message(at: int, peer_id: str, image: str) -> str:
    return f"preheat\n{at}\n{peer_id}\n{image}"


def _known(node: Node, rules: PreheatRules) -> Iterator[Address]:
    texts = [text for service in _services(node) for text in (service.address, service.meta.get("also"))]
    if not rules.catalog_only:
        for member in node.ring.view():
            if member.alive:
                addresses = [found for text in member.routers if (found := parse(text)) is not None]
                texts += [found.host for found in addresses]
    for text in texts:
        try:
            yield unmapped(ipaddress.ip_address(text or ""))
        except ValueError:
            continue


def _services(node: Node) -> list[HealthyService]:
    if node.consul is None:
        return []
    watches = (node.consul.catalog, node.consul.registries)
    return [service for watch in watches if watch is not None for service in watch.members]

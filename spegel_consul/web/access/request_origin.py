"""The origin of a request, and the name by which it called this node.

Any web page can make a browser send a request to a node, and a page under a name that points at the node's address can
read the answer. Browsers send Fetch Metadata only to https and localhost, and a node's address is neither. They always
send Origin, with each POST, and Host. So a request that costs something must be a POST, and a request by a name that a
site could have pointed here (DNS rebinding) gets only the paths that monitoring reads, which do not come here.

A new rule about requests to refuse belongs here; the accepted names belong to ``own_names``.
"""

from __future__ import annotations

import ipaddress
import json
import re
import urllib.parse

from quart import Response, request

from spegel_consul.peers import unmapped
from spegel_consul.web.access.own_names import OwnNames

_PROXIED = re.compile(r"forwarded|via|x-real-ip|x-forwarded-.*", re.IGNORECASE)
_SHOWN = 100


def from_this_machine() -> bool:
    """Whether the client connected over loopback, or from the address that it called, without a proxy."""
    address, client, server = client_address(), request.scope.get("client"), request.scope.get("server")
    if address is None or client is None:
        return False
    return address.is_loopback or (server is not None and client[0] == server[0])


def client_address() -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of the client; None if it came through a proxy, or not over IP."""
    if any(_PROXIED.fullmatch(name) for name in request.headers.keys()):  # noqa: SIM118 - iterating yields pairs
        return None
    client = request.scope.get("client")
    if client is None:
        return None
    try:
        return unmapped(ipaddress.ip_address(client[0].partition("%")[0]))
    except ValueError:
        return None


def from_another_site() -> bool:
    """Whether a page of another site made the browser send this request. Programs send none of these headers."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:  # the browser compares, so a proxy that changes Host does no harm
        return site not in ("none", "same-origin")
    named = request.headers.get("origin") or request.headers.get("referer")
    if named is None:
        return False
    try:
        return urllib.parse.urlsplit(named).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        return True


def refusal(names: OwnNames) -> Response | None:
    """The answer 421 (RFC 9110, 15.5.20) to a request by a name that a site could have pointed here, else None."""
    host = request.headers.get("host", "")
    if names.have(host):
        return None
    shown = "".join(each if each.isprintable() else "?" for each in host[:_SHOWN])
    message = (
        f"{shown!r} is not known as a name of this node: ask by its address,"
        " or start the sidecar with --web-allowed-hosts and this name"
    )
    return Response(json.dumps({"error": message}) + "\n", status=421, content_type="application/json")

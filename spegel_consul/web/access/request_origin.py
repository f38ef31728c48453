# Every page of the web can make a browser ask us, and one whose name leads to our address can read the answer.
# Browsers say where a request comes from (Fetch Metadata) only to https and localhost, which a node's address is not;
# what they do say everywhere is Origin, with each POST, and Host.  So what costs something is a POST, and whoever calls
# us by a name that others could have pointed here (DNS rebinding) is answered nothing but what monitoring reads.

"""Where a request came from, and by which name this node was called."""

from __future__ import annotations

import ipaddress
import json
import re
import urllib.parse

from quart import Response, request

from spegel_consul.peers import unmapped
from spegel_consul.web.access.own_names import OwnNames

OPEN = frozenset({"/metrics", "/livez", "/readyz", "/id"})
"""Paths that answer by any name: Prometheus, load balancers and other routers call a node by names of their own."""

_PROXIED = re.compile(r"forwarded|via|x-real-ip|x-forwarded-.*", re.IGNORECASE)
_SHOWN = 100


def from_this_machine() -> bool:
    """Whether the client reached us over loopback, or from the very address that it called, without a proxy."""
    if any(_PROXIED.fullmatch(name) for name in request.headers.keys()):  # noqa: SIM118 - iterating yields pairs
        return False
    client, server = request.scope.get("client"), request.scope.get("server")
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    return unmapped(address).is_loopback or (server is not None and client[0] == server[0])


def from_another_site() -> bool:
    """Whether a page of another site made the browser ask: it has no business here. Programs say nothing of a site."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:  # the browser has compared, also where a proxy gave us another Host than it was asked for
        return site not in ("none", "same-origin")
    named = request.headers.get("origin") or request.headers.get("referer")
    if named is None:
        return False
    try:
        return urllib.parse.urlsplit(named).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        return True


def refusal(names: OwnNames) -> Response | None:
    """The answer to a request by a name that others could have pointed here: 421 (RFC 9110, 15.5.20)."""
    host = request.headers.get("host", "")
    if request.path in OPEN or names.have(host):
        return None
    shown = "".join(each if each.isprintable() else "?" for each in host[:_SHOWN])
    message = (
        f"{shown!r} is not known as a name of this node: ask by its address,"
        " or start the sidecar with --web-allowed-hosts and this name"
    )
    return Response(json.dumps({"error": message}) + "\n", status=421, content_type="application/json")

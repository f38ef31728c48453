"""Where a request came from."""

from __future__ import annotations

import ipaddress

from quart import request


def from_this_machine() -> bool:
    """Whether the client reached us over loopback, or from the very address that it called."""
    client, server = request.scope.get("client"), request.scope.get("server")
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback) or (server is not None and client[0] == server[0])


def from_another_site() -> bool:
    """Whether a page of another site made the browser ask (Fetch Metadata): it has no business here."""
    return request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")

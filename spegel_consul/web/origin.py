# Every page of the web can make a browser ask us, and one whose name leads to our address can read the answer.
# Browsers say where a request comes from (Fetch Metadata) only to https and localhost, which a node's address is not;
# what they do say everywhere is Origin, with each POST.  So what costs something is a POST, and what is for this
# machine alone is for no name that others could have pointed here.

"""Where a request came from."""

from __future__ import annotations

import ipaddress
import urllib.parse

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


def by_own_name(name: str) -> bool:
    """Whether the client called us by an IP address, as localhost or as the node ``name``: no other site has those."""
    try:
        host = urllib.parse.urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if host in ("localhost", name.lower()):
            return True
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

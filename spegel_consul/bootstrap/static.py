# A list of peers from the configuration.  It never changes; one reachable peer on it is enough.

"""``StaticBootstrap``: the peers that the operator named."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

import trio
from multiaddr import Multiaddr

from spegel_consul.ring import PeerInfo

_MULTIADDR = re.compile(r"(/(?:ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/[0-9]+)(?:/p2p/([^/]+))?")
_HOST_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):([0-9]+)")


class StaticBootstrap:
    """Joins through ``addresses``: ``/ip4/10.0.0.7/tcp/5001[/p2p/<id>]`` (or ip6, dns…) or ``host:port``.

    Addresses with the same peer id are one peer. Raises ValueError.
    """

    problem = None

    def __init__(self, addresses: Iterable[str]) -> None:
        known: dict[str, list[str]] = {}
        self._peers: list[PeerInfo] = []
        for address in addresses:
            peer_id, router = _parse(address.strip())
            if peer_id is None:
                self._peers.append(PeerInfo(None, (router,)))
            elif router not in known.setdefault(peer_id, []):
                known[peer_id].append(router)
        self._peers += [PeerInfo(peer_id, tuple(routers)) for peer_id, routers in known.items()]

    def peers(self) -> Sequence[PeerInfo]:
        """The peers; those without an id first."""
        return tuple(self._peers)

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return if ``since`` are others than :meth:`peers`, else never."""
        if _who_and_where(self._peers) == _who_and_where(since):
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing to keep fresh; sleeps until cancelled."""
        task_status.started()
        await trio.sleep_forever()


def _who_and_where(peers: Sequence[PeerInfo]) -> set[tuple[str | None, frozenset[str]]]:
    return {(peer.id, frozenset(peer.addrs)) for peer in peers}


def _parse(address: str) -> tuple[str | None, str]:
    """The peer id, if there is one, and the router's multiaddr without it."""
    if not address.startswith("/"):
        address = _from_host_port(address)
    shape = _MULTIADDR.fullmatch(address)
    if shape is None:
        raise ValueError(f"bootstrap peer {address!r}: not /ip4/<address>/tcp/<port>[/p2p/<id>] or <host>:<port>")
    try:
        Multiaddr(address)
    except ValueError as why:
        raise ValueError(f"bootstrap peer {address!r}: {why}") from None
    return shape[2], shape[1]


def _from_host_port(text: str) -> str:
    shape = _HOST_PORT.fullmatch(text)
    if shape is None:
        raise ValueError(f"bootstrap peer {text!r}: not <host>:<port> (IPv6 in brackets) or a multiaddr")
    host = shape[1] or shape[2]
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{shape[3]}"

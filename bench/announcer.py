# How a real sidecar comes to mirror from nginx: a member of the ring without a registry of its own announces the
# content and says that its registry is where nginx listens.  The sidecar looks the key up, finds this provider and
# fetches from it, all by its usual code; only the other end is the fastest server there is, so that the sidecar is what
# limits the transfer.

"""``python -m bench.announcer ROUTER_PORT REGISTRY_PORT KEY...``: a member of the ring that speaks for a registry."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import trio

from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter

_LOOPBACK = "127.0.0.1"


async def announce(router_port: int, registry_port: int, keys: Sequence[str]) -> None:
    """Announce ``keys`` until cancelled; others join through us."""
    host = Libp2pHost(load_or_create(None), bind=(_LOOPBACK, router_port))
    router = KadRouter(host, registry=(_LOOPBACK, registry_port))
    async with trio.open_nursery() as nursery:
        await nursery.start(router.run)
        await router.announce(keys)


if __name__ == "__main__":
    trio.run(announce, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
